"""DPO on a language model of sound tokens, with preference pairs made by a `Reward`.

    python recipes/dpo_codec_lm.py --output runs/dpo
    python recipes/dpo_codec_lm.py --output runs/dpo --reward recipes/panel.yaml --config run.yaml

Generates songs for every prompt, scores them, builds pairs with `apex_reward.build_pairs`, trains a
LoRA adapter with TRL's DPOTrainer, generates again and compares. Without other arguments it trains
a small Llama over note tokens first and uses apex-tiny; this takes minutes on two CPU cores.
Every field of TRL's DPOConfig is an option and a key of the YAML file (`--save_steps 50
--report_to tensorboard`). With a codec language model and its codec:

    accelerate launch recipes/dpo_codec_lm.py --output runs/dpo --policy HUB_ID \
        --prompts FILE.txt --reward-model amaai-lab/apex \
        --codec facebook/encodec_32khz --codebooks 4 --layout delay --offset 32000 \
        --max_new_tokens 1500 --learning_rate 1e-5 --per_device_train_batch_size 4

Writes history.jsonl (a row per logged step; `reward` is the mean over fresh generations),
summary.json, curves.png, candidates.jsonl, pairs.jsonl and dropped.jsonl, audio/ before and after,
and the adapter. Ctrl-C ends after the step, with a checkpoint.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer

from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.pairs import build_pairs, to_trl
from apex_reward.runs.interrupt import Interrupt, InterruptCallback
from apex_reward.runs.log import RunLog
from apex_reward.runs.policy import (
    PolicySettings,
    Row,
    SongSampler,
    load_policy,
    policy_judge,
)
from apex_reward.runs.settings import (
    QuietDefaults,
    RewardSettings,
    option,
    output_field,
    parse_settings,
)
from toys.notes import SLOTS, note_policy

LOGGED = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")
PANELS = {
    "reward of fresh generations": ["reward"],
    "distance from the reference": ["apex/distance"],
    "spread within a prompt": ["apex/embedding_spread"],
    "loss, DPO + SFT": ["loss"],
    "accuracy on training pairs": ["rewards/accuracies"],
}


@dataclass
class PairSettings:
    """Sampling of songs, and pairs of them."""

    candidates: int = option(12, "songs per prompt")
    fresh: int = option(2, "songs per prompt at every log")
    strategy: str = option("top-bottom", "strategy of build_pairs")
    top_k: int = option(3, "songs at each end that make pairs, for top-bottom")
    test_share: float = option(0.2, "share of the prompts whose pairs are held out")
    max_new_tokens: int = option(SLOTS, "largest number of tokens of a song")
    warm_steps: int = option(200, "training steps of the small generator")


@dataclass
class Settings(QuietDefaults, DPOConfig):
    """TRL's settings with the defaults of this recipe."""

    output_dir: str = output_field("runs/dpo_codec_lm")
    num_train_epochs: float = 3
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16
    learning_rate: float = 1e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 5
    beta: float = 0.1
    # DPO alone can also lower the likelihood of chosen songs, until they no longer decode.
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid", "sft"])
    loss_weights: list[float] | None = field(default_factory=lambda: [1.0, 0.5])
    max_length: int | None = None
    logging_steps: float = 10


def main(arguments: Sequence[str] | None = None) -> None:
    settings, named, how, dpo = parse_settings(
        RewardSettings, PolicySettings, PairSettings, Settings, arguments=arguments
    )
    set_seed(dpo.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if named.policy is None:
        policy = note_policy(dpo.seed, device, how.warm_steps)
    else:
        policy = load_policy(named, device)
    sampler = SongSampler(policy, policy_judge(settings, policy, "flag"), how.max_new_tokens)
    log = RunLog(
        dpo.output_dir, PANELS, formats=settings.formats, resume=bool(dpo.resume_from_checkpoint)
    )
    before, pairs = first_songs(sampler, how, dpo)
    splits = {name: to_trl([p for p in pairs if p["split"] == name]) for name in ("train", "test")}
    trainer = DPOTrainer(
        policy.model,
        args=dpo,
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        processing_class=policy.tokenizer,
        peft_config=named.lora(),
        callbacks=[RewardCurve(sampler, log, how.fresh, dpo.seed)],
    )
    trainer.remove_callback(PrinterCallback)
    with Interrupt() as interrupt:
        stopping = InterruptCallback(interrupt)
        trainer.add_callback(stopping)
        trainer.train(resume_from_checkpoint=dpo.resume_from_checkpoint)
    held_out = trainer.evaluate()
    trainer.save_model(str(log.output / "adapter"))
    after = sampler.songs(how.candidates, dpo.seed + 1, trainer.model)
    sampler.save(log, "before", before)
    sampler.save(log, "after", after)
    log.finish(
        {
            **rise(before, after),
            "held_out_accuracy": held_out["eval_rewards/accuracies"],
            "held_out_pairs": len(splits["test"]),
            "train_pairs": len(splits["train"]),
            "interrupted": stopping.stopped,
            "demonstration": sampler.judge.reward.demonstration,
        },
        dpo,
        how,
        named,
        settings,
    )


def first_songs(
    sampler: SongSampler, how: PairSettings, dpo: Settings
) -> tuple[list[Row], list[Row]]:
    """Candidates and their pairs; a resumed run reads them from its files."""
    folder = Path(dpo.output_dir)
    if dpo.resume_from_checkpoint:
        return read_jsonl(folder / "candidates.jsonl"), read_jsonl(folder / "pairs.jsonl")
    before = sampler.songs(how.candidates, dpo.seed)
    pairs, dropped = build_pairs(
        before,
        strategy=how.strategy,
        axis="reward",
        top_k=how.top_k if how.strategy == "top-bottom" else None,
        test_share=how.test_share,
        seed=dpo.seed,
    )
    for name, rows in (("candidates", before), ("pairs", pairs), ("dropped", dropped)):
        write_table(folder / f"{name}.jsonl", rows)
    print(f"{len(before)} songs of {len(sampler.policy.prompts)} prompts -> {len(pairs)} pairs")
    return before, pairs


class RewardCurve(TrainerCallback):
    """At every log: the mean reward of a few fresh generations, next to what TRL logged."""

    def __init__(self, sampler: SongSampler, log: RunLog, fresh: int, seed: int) -> None:
        self.sampler, self.log, self.fresh, self.seed = sampler, log, fresh, seed

    def measure(self, model: Any, step: int, logged: dict[str, float]) -> None:
        songs = self.sampler.songs(self.fresh, self.seed + 1000 + step, model)
        known = [song["reward"] for song in songs if song["reward"] is not None]
        row = {"step": step, "reward": statistics.fmean(known) if known else None, **logged}
        self.log.append({**row, **self.sampler.figures})

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.log.keep_until(state.global_step)
        if state.global_step == 0:
            self.measure(model, 0, {})

    def on_log(self, args: Any, state: Any, control: Any, model: Any, logs: Row, **_: Any) -> None:
        if "loss" in logs:
            self.measure(model, state.global_step, {k: float(logs[k]) for k in LOGGED})


def rise(before: list[Row], after: list[Row]) -> dict[str, float]:
    """Mean rewards before and after, and the rise in standard errors of the difference."""
    old, new = (
        [row["reward"] for row in rows if row["reward"] is not None] for rows in (before, after)
    )
    error = math.sqrt(statistics.variance(old) / len(old) + statistics.variance(new) / len(new))
    difference = statistics.fmean(new) - statistics.fmean(old)
    return {
        "reward_before": statistics.fmean(old),
        "reward_after": statistics.fmean(new),
        "reward_std_before": statistics.pstdev(old),
        "rise_in_standard_errors": difference / error,
        "decoded_before": len(old) / len(before),
        "decoded_after": len(new) / len(after),
    }


if __name__ == "__main__":
    main()
