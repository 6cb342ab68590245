"""GRPO on a language model of sound tokens, with songs scored by a `Reward`.

    python recipes/grpo_codec_lm.py --output runs/grpo
    python recipes/grpo_codec_lm.py --output runs/grpo --reward recipes/panel.yaml --config run.yaml
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/grpo_codec_lm.py --output runs/grpo

Without other arguments it trains a small Llama over note tokens first, then a LoRA adapter with
apex-tiny as the reward; this takes minutes on two CPU cores. Every field of TRL's GRPOConfig is an
option and a key of the YAML file (`--save_steps 50 --report_to tensorboard --beta 0.02`). With a
codec language model and its codec:

    accelerate launch recipes/grpo_codec_lm.py --output runs/grpo --policy HUB_ID \
        --prompts FILE.txt --reward-model amaai-lab/apex \
        --codec facebook/encodec_32khz --codebooks 4 --layout delay --offset 32000 \
        --max_completion_length 1500 --learning_rate 1e-5 --reference-songs DIR

`--holdout-reward songeval` (or a reward file) scores songs of prompts that are not trained on. It
warns where that reward turns while the trained one rises. Ctrl-C ends the run after the step, with
a checkpoint.

Writes history.jsonl, summary.json, curves.png, completions.jsonl (every completion with its reward
and scores), audio/ before and after, and the LoRA adapter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from apex_reward import ApexRewardFunction
from apex_reward.files.tables import json_line, read_jsonl, write_text
from apex_reward.rewards.groups import everywhere
from apex_reward.rewards.stacks.holdout import HoldoutCallback, StopRule
from apex_reward.runs.interrupt import Interrupt, InterruptCallback
from apex_reward.runs.log import RunLog, before_and_after
from apex_reward.runs.policy import (
    Policy,
    PolicySettings,
    SongSampler,
    load_policy,
    policy_judge,
    split_prompts,
)
from apex_reward.runs.settings import (
    QuietDefaults,
    RewardSettings,
    build_holdout,
    output_field,
    parse_settings,
)
from toys.notes import SLOTS, note_policy

EACH = 2  # held-out songs of each
PANELS = {
    "reward": ["reward", "holdout/reward"],
    "distance from the reference": ["apex/distance"],
    "spread within a prompt": ["apex/embedding_spread"],
    "shares": ["apex/guard_any", "apex/undecodable", "apex/zero_variance_groups"],
}


@dataclass
class Settings(QuietDefaults, GRPOConfig):
    """TRL's settings with the defaults of this recipe; processes share a batch."""

    output_dir: str = output_field("runs/grpo_codec_lm")
    max_steps: int = 60
    per_device_train_batch_size: int = 32 // int(os.environ.get("WORLD_SIZE", "1"))
    num_generations: int | None = 8
    max_completion_length: int | None = SLOTS
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "constant_with_warmup"
    warmup_steps: float = 5
    beta: float = 0.02
    # Scaled by its own spread, a group of equally good songs would count as much as any other.
    scale_rewards: str = "batch"
    logging_steps: float = 1


def main(arguments: Sequence[str] | None = None) -> None:
    settings, named, grpo = parse_settings(
        RewardSettings, PolicySettings, Settings, arguments=arguments
    )
    state = PartialState(cpu=grpo.use_cpu)
    set_seed(grpo.seed)
    if named.policy is None:
        policy = note_policy(grpo.seed, state.device)
    else:
        policy = load_policy(named, state.device)
    held_out, prompts = split_prompts(policy.prompts)
    judge = policy_judge(settings, policy)
    function = ApexRewardFunction(judge.reward, decode=policy.decode, reference=judge.reference)
    files = {"writes": state.is_main_process, "resume": bool(grpo.resume_from_checkpoint)}
    completions = CompletionLog(function, Path(grpo.output_dir) / "completions.jsonl", **files)
    log = RunLog(grpo.output_dir, PANELS, formats=settings.formats, **files)
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=completions,
        args=grpo,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=policy.tokenizer,
        peft_config=named.lora(),
    )
    if len(trainer.get_train_dataloader()) == 0:
        each = grpo.generation_batch_size // grpo.num_generations
        raise SystemExit(
            f"{len(prompts)} prompts to train on are fewer than the {each} of a step; TRL would "
            "train on none. Give more prompts, or a smaller --per_device_train_batch_size"
        )
    unseen = build_holdout(settings, policy.decode.sample_rate, policy.seconds, None)
    rule = None
    if unseen is not None:
        sampler = SongSampler(policy, unseen, grpo.max_completion_length)
        rule = add_holdout(trainer, settings, sampler, held_out)
    trainer.add_callback(HistoryCallback(log, completions))
    trainer.remove_callback(PrinterCallback)
    with Interrupt() as interrupt:
        stopping = InterruptCallback(interrupt)
        trainer.add_callback(stopping)
        trainer.train(resume_from_checkpoint=grpo.resume_from_checkpoint)
    trainer.save_model(str(Path(grpo.output_dir) / "adapter"))
    if state.is_main_process:
        write_songs(log, completions, policy)
        log.finish(
            {
                **figures(completions),
                "processes": state.num_processes,
                "demonstration": function.reward.demonstration,
                "interrupted": stopping.stopped,
                "turn": None if rule is None or rule.turn is None else vars(rule.turn),
            },
            grpo,
            named,
            settings,
        )
    state.wait_for_everyone()
    trainer.accelerator.end_training()  # else a process can be aborted as it exits


def add_holdout(
    trainer: GRPOTrainer, settings: RewardSettings, sampler: SongSampler, prompts: list[str]
) -> StopRule:
    """Score songs of held-out prompts by the held-out reward."""
    grpo = trainer.args

    def measure(model: Any) -> list[float]:
        return [row["reward"] or 0.0 for row in sampler.songs(EACH, grpo.seed + 1, model, prompts)]

    callback = HoldoutCallback(
        measure,
        settings.holdout_steps,
        stop=settings.holdout_stop,
        output=grpo.output_dir,
        formats=settings.formats,
    )
    return callback.first_of(trainer).rule


class CompletionLog:
    """A reward function for TRL that writes every completion with its reward and scores.

    A row has `step` (steps completed before it was generated), `prompt`, `reward`, a column per
    head, `reward_raw`, `flags` and `ids`. The main process writes the rows of all processes.

    Args:
        function: the reward function.
        path: of the JSON lines.
        writes: whether this process writes.
        resume: keep the rows of an earlier run; `keep_until` drops those that are written again.
    """

    def __init__(
        self,
        function: ApexRewardFunction,
        path: str | Path,
        *,
        writes: bool = True,
        resume: bool = False,
    ) -> None:
        self.function, self.path, self.writes = function, Path(path), writes
        self.__name__ = function.__name__
        self.rows: list[dict[str, Any]] = []
        if resume and self.path.exists():
            self.rows = read_jsonl(self.path)
        self.keep_until(float("inf"))

    def keep_until(self, step: float) -> None:
        """Drop the rows of a step and after it."""
        self.rows = [row for row in self.rows if row["step"] < step]
        if self.writes:
            write_text(self.path, "".join(map(json_line, self.rows)))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """As `ApexRewardFunction`."""
        logged: dict[str, list[Any]] = {}

        def keep(name: str, values: list[Any]) -> None:
            logged[name.rpartition("/")[2]] = values
            if log_extra is not None:
                log_extra(name, values)

        rewards = self.function(prompts, completions, completion_ids, log_extra=keep, **columns)
        step = 0 if trainer_state is None else trainer_state.global_step
        rows = [
            {
                "step": step,
                "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
                "reward": reward,
                **{name: values[i] for name, values in logged.items()},
                "ids": list(completion_ids[i]),
            }
            for i, (prompt, reward) in enumerate(zip(prompts, rewards, strict=True))
        ]
        gathered, _ = everywhere(rows)
        self.rows += gathered
        if self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(map(json_line, gathered)))
        return rewards

    def by_step(self) -> list[list[dict[str, Any]]]:
        """The rows of each step, in order."""
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in self.rows:
            rows.setdefault(row["step"], []).append(row)
        return [rows[step] for step in sorted(rows)]


class HistoryCallback(TrainerCallback):
    """Adds the rows of a trainer's log that have a reward to a `RunLog`.

    Args:
        log: gets the rows.
        completions: the log of completions, which resumes with the run.
    """

    def __init__(self, log: RunLog, completions: CompletionLog | None = None) -> None:
        self.log, self.completions = log, completions

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run drops the rows after its checkpoint."""
        self.log.keep_until(state.global_step)
        if self.completions is not None:
            self.completions.keep_until(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep the row."""
        if logs and "reward" in logs:
            self.log.append({"step": state.global_step, **logs})


def figures(completions: CompletionLog) -> dict[str, float]:
    """Figures of the first and of the last tenth of the steps."""
    steps = completions.by_step()
    tenth = max(1, round(len(steps) / 10))
    return {
        **before_and_after([[row["reward"] for row in rows] for rows in steps]),
        "guard_rate_before": shares(steps[:tenth])[0],
        "guard_rate_after": shares(steps[-tenth:])[0],
        "undecodable_after": shares(steps[-tenth:])[1],
    }


def shares(steps: list[list[dict[str, Any]]]) -> tuple[float, float]:
    """Share of the decoded songs with a guard that trips, and of completions without a song."""
    flags = [row["flags"] for rows in steps for row in rows]
    decoded = [found for found in flags if found is not None]
    tripped = sum(map(bool, decoded)) / max(1, len(decoded))
    return tripped, 1 - len(decoded) / max(1, len(flags))


def write_songs(log: RunLog, completions: CompletionLog, policy: Policy) -> None:
    """Four songs of the first step and four of the last."""
    for name, rows in (("before", completions.rows[:4]), ("after", completions.rows[-4:])):
        for i, song in enumerate(policy.decode([row["ids"] for row in rows])):
            log.song(f"{name}_{i}", song, policy.decode.sample_rate)


if __name__ == "__main__":
    main()
