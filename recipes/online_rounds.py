"""Online rounds on a language model of sound tokens: generate, score, select, train, again.

    python recipes/online_rounds.py --output runs/rounds
    python recipes/online_rounds.py --output runs/rounds --strategy dpo
    python recipes/online_rounds.py --output runs/rounds --resume

Every round draws songs for every prompt, scores them with a `Reward`, and trains a LoRA adapter on
what it selects. `--strategy expert` (expert iteration) takes the best share of each prompt's songs
and imitates them with TRL's SFTTrainer; `--strategy dpo` (semi-online DPO) makes fresh pairs of
them for TRL's DPOTrainer, whose reference is the policy that the round began with. Each round
starts from the adapter that the round before left.

Every sixth prompt is held out. Its songs are drawn from the same random numbers in every round and
scored by `--holdout-reward`, or by the reward itself. The run stops where that score turns while
the trained reward rises, or where the songs of a prompt become too similar (`--least_spread`).

ledger.jsonl has a row per round. The same command with `--resume` resumes a killed run: rounds in
the ledger are not repeated, an incomplete round starts again from its seed, and the ledger ends
with the same rows. Without other arguments the recipe trains a small Llama over note tokens first
and uses apex-tiny; this takes minutes on two CPU cores. With a codec language model (one process):

    python recipes/online_rounds.py --output runs/rounds --policy HUB_ID --prompts FILE.txt \
        --reward-model amaai-lab/apex --holdout-reward songeval \
        --codec facebook/encodec_32khz --codebooks 4 --layout delay --offset 32000 \
        --max_new_tokens 1500 --learning_rate 1e-5 --per_device_train_batch_size 4

Writes ledger.jsonl, history.jsonl (the same rows by `step`), summary.json, curves.png, audio/ of
the first and the last round, and rounds/NNN/ with candidates, what was selected, and adapter/.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import PrinterCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from apex_reward.files.atomic import atomic
from apex_reward.files.growing import GrowingTable
from apex_reward.files.stamps import Stamp
from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.pairs import build_pairs, to_trl
from apex_reward.rewards.stacks.holdout import StopRule
from apex_reward.runs.interrupt import Interrupt
from apex_reward.runs.log import RunLog
from apex_reward.runs.policy import (
    Policy,
    PolicySettings,
    Row,
    SongSampler,
    load_policy,
    policy_judge,
    split_prompts,
)
from apex_reward.runs.settings import (
    RewardSettings,
    build_holdout,
    option,
    output_field,
    parse_settings,
    plain,
)
from toys.notes import SLOTS, note_policy

PANELS = {
    "reward": ["reward", "held_out"],
    "spread within a prompt": ["apex/embedding_spread"],
    "distance from the reference": ["apex/distance"],
    "shares": ["apex/guard_any", "apex/undecodable"],
}
ROUND = 1000  # between the seeds of two rounds
# What a resumed run may change.
FREE = ("output_dir", "resume", "rounds", "figures")


@dataclass
class Settings:
    """The rounds, with TRL's names where it has one."""

    output_dir: str = output_field("runs/online_rounds")
    seed: int = option(0, "random seed of weights, samples and training")
    resume: bool = option(False, "resume the run in the folder")
    strategy: str = option("expert", "training of a round", choices=["expert", "dpo"])
    rounds: int = option(6, "rounds of sampling, scoring, selecting and training")
    candidates: int = option(8, "songs per prompt and round")
    top_share: float = option(0.25, "share of a prompt's songs that expert iteration imitates")
    top_k: int = option(2, "best and worst songs of a prompt that make pairs")
    fresh: int = option(4, "songs per held-out prompt and round")
    least_spread: float = option(0.2, "smallest spread, as a share of the first round's")
    num_train_epochs: float = option(2, "training epochs of a round")
    per_device_train_batch_size: int = option(16, "songs or pairs of an update")
    learning_rate: float = option(1.5e-3, "learning rate of AdamW, falling to 0 in every round")
    beta: float = option(0.1, "beta of DPO")
    max_new_tokens: int = option(SLOTS, "largest number of tokens of a song")
    warm_steps: int = option(150, "training steps of the small generator")


def main(arguments: Sequence[str] | None = None) -> None:
    settings, named, own = parse_settings(
        RewardSettings, PolicySettings, Settings, arguments=arguments
    )
    set_seed(own.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if named.policy is None:
        policy = note_policy(own.seed, device, own.warm_steps)
    else:
        policy = load_policy(named, device)
    rounds = Rounds(own, settings, named, policy)
    with rounds.ledger.locked(), Interrupt() as interrupt:
        rounds.take_up(plain(settings, named, own))
        while not rounds.over:
            rounds.advance()
            if interrupt.asked():
                break
        rounds.finish(settings, named)


class Rounds:
    """A policy, its ledger and its rounds."""

    def __init__(
        self, own: Settings, settings: RewardSettings, named: PolicySettings, policy: Policy
    ) -> None:
        self.own, self.policy, self.lora = own, policy, named.lora()
        self.folder = Path(own.output_dir)
        self.log = RunLog(self.folder, PANELS, formats=settings.formats, xlabel="round")
        self.held_out, self.prompts = split_prompts(policy.prompts)
        judge = policy_judge(settings, policy)
        self.sampler = SongSampler(policy, judge, own.max_new_tokens)
        unseen = build_holdout(settings, policy.decode.sample_rate, policy.seconds, None)
        self.unseen = SongSampler(policy, unseen or judge, own.max_new_tokens)
        self.ledger = GrowingTable(self.folder / "ledger.jsonl")
        self.collapse = Collapse(own.least_spread)
        self.rows: list[Row] = []

    @property
    def over(self) -> bool:
        """Whether the last round is in the ledger, or the run stopped early."""
        return len(self.rows) > self.own.rounds or self.collapse.reason is not None

    def take_up(self, values: dict[str, Any]) -> None:
        """Start, or resume after the rounds of an earlier run with the same settings."""
        stamp = Stamp({k: v for k, v in values.items() if k not in FREE})
        beside = self.folder / "ledger.run.json"
        if self.own.resume:
            if self.ledger.path.exists():
                sys.exit(f"{self.ledger.path} is complete: the run is finished")
            former = self.ledger.written()
            if former:
                stamp.check(beside, self.ledger.partial)
            for row in former:
                self.keep(row)
        self.ledger.start(len(self.rows))
        self.ledger.path.unlink(missing_ok=True)
        stamp.write(beside)

    def advance(self) -> None:
        """A round: songs of the policy, a selection of them, a trained adapter.

        After the last round the songs of the trained policy are scored once more.
        """
        number = len(self.rows)
        seed = self.own.seed + ROUND * (number + 1)
        set_seed(seed)
        model = self.model(number)
        with atomic(self.round_folder(number)) as folder:
            songs = self.sampler.songs(self.own.candidates, seed, model, self.prompts)
            row = {"round": number, "seed": seed, **self.figures(songs, model), "selected": 0}
            write_table(folder / "candidates.jsonl", songs)
            if number < self.own.rounds:
                selected = self.selected(songs, seed)
                write_table(folder / "selected.jsonl", selected)
                row["selected"] = len(selected)
                self.train(model, selected, folder, seed)
                model.save_pretrained(str(folder / "adapter"), selected_adapters=["default"])
        self.policy.model = model.unload()
        self.ledger.append([row])
        self.keep(row)
        shown = ("reward", "held_out", "apex/embedding_spread", "apex/distance")
        print(f"round {number}:", {name: round(row[name], 3) for name in shown if name in row})

    def keep(self, row: Row) -> None:
        """Add a round of the ledger, and check for a collapse."""
        self.rows.append(row)
        self.collapse.add(row)

    def model(self, number: int) -> PeftModel:
        """The policy with the adapter of the previous round."""
        if number == 0:
            return get_peft_model(self.policy.model, self.lora)
        adapter = self.round_folder(number - 1) / "adapter"
        return PeftModel.from_pretrained(self.policy.model, str(adapter), is_trainable=True)

    def figures(self, songs: list[Row], model: PeftModel) -> dict[str, Any]:
        """Figures of a round's songs, and of the songs of held-out prompts."""
        rewards = [row["reward"] for row in songs if row["reward"] is not None]
        if not rewards:
            sys.exit("no candidate of this round decodes, so there is nothing to train on")
        held_out = self.unseen.songs(self.own.fresh, self.own.seed, model, self.held_out)
        return {
            "songs": len(songs),
            "reward": statistics.fmean(rewards),
            "reward_std": statistics.pstdev(rewards),
            "held_out": statistics.fmean(row["reward"] or 0.0 for row in held_out),
            **self.sampler.figures,
        }

    def selected(self, songs: list[Row], seed: int) -> list[Row]:
        """The best songs of each prompt, or pairs of best and worst ones."""
        if self.own.strategy == "dpo":
            options = {"strategy": "top-bottom", "top_k": self.own.top_k}
            return build_pairs(songs, axis="reward", seed=seed, **options)[0]
        kept = max(1, round(self.own.top_share * self.own.candidates))
        groups = [[row for row in songs if row["prompt"] == prompt] for prompt in self.prompts]
        known = [[row for row in group if row["reward"] is not None] for group in groups]
        return [row for group in known for row in sorted(group, key=rank)[:kept]]

    def train(self, model: PeftModel, selected: list[Row], folder: Path, seed: int) -> None:
        """Train some epochs on the selection."""
        own, dpo = self.own, self.own.strategy == "dpo"
        shared: dict[str, Any] = {
            name: getattr(own, name)
            for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate")
        }
        shared |= {"output_dir": str(folder), "seed": seed, "lr_scheduler_type": "cosine",
                   "save_strategy": "no", "report_to": "none", "gradient_checkpointing": False,
                   "logging_strategy": "no", "disable_tqdm": not sys.stderr.isatty(),
                   "use_cpu": not torch.cuda.is_available(), "bf16": torch.cuda.is_available(),
                   "max_length": None}  # fmt: skip
        if dpo:
            # DPO alone may lower the likelihood of chosen songs too, until they no longer decode.
            losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
            make, args, data = (
                DPOTrainer,
                DPOConfig(beta=own.beta, **losses, **shared),
                to_trl(selected),
            )
        else:
            make, args = SFTTrainer, SFTConfig(**shared)
            data = Dataset.from_list([self.tokenized(row) for row in selected])
        trainer = make(model, args=args, train_dataset=data, processing_class=self.policy.tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def tokenized(self, row: Row) -> Row:
        """The tokens of a prompt and its song, with the end token where the policy wrote it."""
        prompt, song = self.policy.tokenizer(row["prompt"]).input_ids, list(row["ids"])
        if len(song) < self.own.max_new_tokens:
            song.append(self.policy.tokenizer.eos_token_id)
        mask = [0] * len(prompt) + [1] * len(song)
        return {"input_ids": prompt + song, "completion_mask": mask}

    def round_folder(self, number: int) -> Path:
        """The folder of a round."""
        return self.folder / "rounds" / f"{number:03d}"

    def finish(self, settings: RewardSettings, named: PolicySettings) -> None:
        """Write curves, summary and songs of the finished rounds; complete the ledger."""
        for row in self.rows:
            self.log.append({"step": row["round"], **row})
        for name, number in (("before", 0), ("after", len(self.rows) - 1)):
            candidates = read_jsonl(self.round_folder(number) / "candidates.jsonl")
            self.sampler.save(self.log, name, candidates)
        first, last = self.rows[0], self.rows[-1]
        self.log.finish(
            {
                "reward_before": first["reward"],
                "reward_after": last["reward"],
                "reward_std_before": first["reward_std"],
                "held_out_before": first["held_out"],
                "held_out_after": last["held_out"],
                "rounds": last["round"],
                "collapse": self.collapse.reason,
                "interrupted": not self.over,
                "demonstration": self.sampler.judge.reward.demonstration,
            },
            self.own, named, settings,
        )  # fmt: skip
        if self.over:
            self.ledger.finish()
            print(self.collapse.reason or f"{self.own.rounds} rounds are done")
        else:
            print("ended early; run the same command with --resume to go on")


class Collapse:
    """Decides from the rows of the ledger whether the run stops, and why.

    Rounds are few, so four falling held-out rewards beside four rising ones are a turn. Within a
    prompt songs grow alike in every healthy run too: only what is left of the first spread counts.
    """

    def __init__(self, least_spread: float) -> None:
        self.rule, self.least = StopRule(alpha=0.05, shortest=4), least_spread
        self.first: float | None = None
        self.reason: str | None = None

    def add(self, row: Row) -> None:
        """Add a round."""
        spread = row.get("apex/embedding_spread", 0.0)
        self.first = spread if self.first is None else self.first
        turn = self.rule.add(row["round"], row["reward"], row["held_out"])
        if turn is not None:
            self.reason = f"stopped after round {row['round']}: {turn}"
        elif spread < self.least * self.first:
            self.reason = (
                f"stopped after round {row['round']}: the songs of a prompt are {spread:.2g} "
                f"apart, {self.first:.2g} in the first round; take an earlier round's adapter"
            )


def rank(row: Row) -> tuple[float, int]:
    """Sort key: the best first; of equal songs the one drawn first."""
    return -row["reward"], int(row["audio"].rpartition("_")[2].removesuffix(".wav"))


if __name__ == "__main__":
    main()
