"""Back-propagate a `Reward` into an audio generator: DRaFT on a flow, or on a diffusers pipeline.

    python recipes/reward_backprop.py --output runs/backprop
    python recipes/reward_backprop.py --output runs/guarded --guards penalty --reference-songs DIR
    python recipes/reward_backprop.py --output runs/panel --reward recipes/panel.yaml

Without other arguments it trains a small flow on melodies with hiss and distortion, and improves it
through the reward's gradient on some prompts. Other prompts measure the result. This takes a few
minutes on two CPU cores. Guards have no gradient of their own: with `--guards penalty` they reduce
the step where a limit is near (`guarded_gradient`). With a diffusers audio pipeline it trains LoRA
on its attention. The table of pipelines is
`apex_reward.runs.pipelines.PIPELINES`; the recipe prints the length, the rate and the share of the
attention weights that it adapts. Noise is fresh at every step:

    accelerate launch recipes/reward_backprop.py --output runs/backprop --prompts FILE.txt \
        --pipeline stabilityai/stable-audio-open-1.0 --reward-model amaai-lab/apex --save_steps 50 \
        --sampler_steps 50 --last 1 --per_device_train_batch_size 1 --learning_rate 1e-4

Writes history.jsonl (`reward` of training prompts before guards, `held_out` after guards,
`grad_norm`), summary.json, curves.png, audio/ of held-out prompts before and after, and the flow's
trained.safetensors or a pipeline's adapter/, which `PeftModel.from_pretrained(pipeline.transformer,
folder)` loads. Ctrl-C ends after the step, with a checkpoint.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor

from apex_reward.rewards.gradient import guarded_gradient
from apex_reward.rewards.groups import everywhere, prompt_keys
from apex_reward.rewards.judge import Judged
from apex_reward.rewards.stacks.holdout import StopRule, write_holdout
from apex_reward.runs.interrupt import Interrupt, how_to_go_on
from apex_reward.runs.log import RunLog
from apex_reward.runs.loop import StepSettings
from apex_reward.runs.pipelines import AudioPipeline
from apex_reward.runs.policy import split_prompts
from apex_reward.runs.settings import (
    RewardSettings,
    build_holdout,
    build_judge,
    option,
    output_field,
    parse_settings,
    read_prompts,
)
from toys.melodies import SONG_SECONDS, MelodyFlow, melody_prompts, melody_references

PANELS = {
    "reward": ["reward", "held_out", "holdout/reward"],
    "distance from the reference": ["apex/distance"],
    "spread within a prompt": ["apex/embedding_spread"],
    "share flagged": ["apex/guard_any"],
    "gradient norm": ["grad_norm"],
}


@dataclass
class Settings(StepSettings):
    """The training, with TRL's names where it has one."""

    output_dir: str = output_field("runs/reward_backprop")
    per_device_train_batch_size: int = option(8, "songs of a process in a micro-batch")
    sampler_steps: int = option(8, "sampler steps of a song")
    last: int = option(2, "sampler steps on the graph (DRaFT-K)")
    learning_rate: float = option(2e-4, "learning rate of AdamW")
    anchor: float = option(1e-3, "weight of the squared drift of the weights")
    save_steps: int = option(0, "steps between two checkpoints; 0: only at Ctrl-C")
    resume_from_checkpoint: str | None = option(None, "checkpoint-N folder of an earlier run")
    report_to: str = option("none", "trackers, such as tensorboard,wandb")
    pipeline: str | None = option(None, "hub id or folder of a diffusers audio pipeline")


def main(arguments: Sequence[str] | None = None) -> None:
    settings, own = parse_settings(RewardSettings, Settings, arguments=arguments)
    trackers = None if own.report_to == "none" else own.report_to.split(",")
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=own.gradient_accumulation_steps,
        log_with=trackers,
        project_dir=own.output_dir if trackers else None,
    )
    accelerator.init_trackers("reward_backprop")
    set_seed(own.seed)
    climb = Climb(own, settings, accelerator)
    before = climb.judged()
    if own.resume_from_checkpoint:
        climb.load(Path(own.resume_from_checkpoint))
    with Interrupt() as interrupt:
        while climb.step < own.max_steps and not climb.ended:
            climb.advance()
            climb.ended |= interrupt.asked()
    accelerator.end_training()
    if accelerator.is_main_process:
        climb.finish(before)


class Climb:
    """A generator, its reward and its optimiser."""

    def __init__(self, own: Settings, settings: RewardSettings, accelerator: Accelerator) -> None:
        self.own, self.settings, self.accelerator = own, settings, accelerator
        toy, device = own.pipeline is None, str(accelerator.device)
        self.generator: Any = (
            MelodyFlow(own.sampler_steps, own.last, own.seed)
            if toy
            else AudioPipeline(own.pipeline, own.audio_seconds, own.sampler_steps, last=own.last)
        )
        self.generator.to(accelerator.device)
        if not toy:
            accelerator.print(self.generator)
        self.unseen, self.prompts = (
            melody_prompts() if toy else split_prompts(read_prompts(own.prompts))
        )
        rate = self.generator.sample_rate
        self.judge = build_judge(
            settings, rate, *((melody_references, SONG_SECONDS) if toy else ()),
            guards="flag", penalty=1.0, loudness=-18.0, device=device,
        )  # fmt: skip
        self.reward = self.judge.reward
        self.holdout = build_holdout(settings, rate, SONG_SECONDS if toy else None, device=device)
        self.rule, self.ended, self.step = StopRule(), False, 0
        self.parameters = [p for p in self.generator.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]
        optimizer = torch.optim.AdamW(self.parameters, lr=own.learning_rate, weight_decay=0.0)
        self.wrapped, self.optimizer = accelerator.prepare(self.generator, optimizer)
        self.random = torch.Generator().manual_seed(own.seed + accelerator.process_index)
        self.log = RunLog(
            own.output_dir, PANELS, formats=settings.formats,
            writes=accelerator.is_main_process, resume=bool(own.resume_from_checkpoint),
        )  # fmt: skip

    def advance(self) -> None:
        """A step and its row; at its time a judgement and a checkpoint."""
        self.step += 1
        row: dict[str, Any] = {"step": self.step, **self.climb()}
        if self.step % self.settings.holdout_steps == 0 or self.step == self.own.max_steps:
            row |= self.judgement([*self.log.rows, row])
        self.log.append(row)
        self.accelerator.log(row, step=self.step)
        if self.own.save_steps and self.step % self.own.save_steps == 0:
            self.save()

    def climb(self) -> dict[str, float]:
        """One optimiser step that raises the reward less the price of its guards."""
        rate, accelerator = self.generator.sample_rate, self.accelerator
        for _ in range(self.own.gradient_accumulation_steps):
            size = (self.own.per_device_train_batch_size,)
            drawn = torch.randint(len(self.prompts), size, generator=self.random).tolist()
            prompts = [self.prompts[i] for i in drawn]
            with accelerator.accumulate(self.wrapped):
                with accelerator.autocast():
                    waveforms = self.wrapped(prompts, self.random)
                rewards, price, up = guarded_gradient(self.reward, waveforms, rate, None, prompts)
                # Weights near the start keep the songs of the generator different from each other.
                pairs = zip(self.parameters, self.start, strict=True)
                drift = torch.stack([(p - q).square().sum() for p, q in pairs]).sum()
                gain = (up * waveforms).sum() / len(waveforms)
                accelerator.backward(self.own.anchor * drift - gain)
                if accelerator.sync_gradients:  # the whole step's gradient, not a part of it
                    norm = accelerator.clip_grad_norm_(self.parameters, self.own.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        mean, cost = (accelerator.gather(x).mean().item() for x in (rewards, price))
        return {"reward": mean, "guard_price": cost, "grad_norm": float(norm)}

    def judgement(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures of the held-out prompts; prints where the held-out reward turns."""
        songs, judged = self.judged()
        found: dict[str, Any] = {"held_out": judged.mean, **self.figures(judged)}
        if self.holdout is not None:
            found["holdout/reward"] = self.holdout(list(songs), self.unseen).mean
            trained = [row["reward"] for row in rows[-self.settings.holdout_steps :]]
            turn = self.rule.add(self.step, statistics.fmean(trained), found["holdout/reward"])
            if turn is not None:
                self.accelerator.print(turn)
                self.ended |= self.settings.holdout_stop
        shown = ("reward", "held_out", "holdout/reward", "apex/distance")
        row = {"step": self.step, **rows[-1], **found}
        self.accelerator.print({name: round(row[name], 4) for name in shown if name in row})
        return found

    def figures(self, judged: Judged) -> dict[str, float]:
        """Figures to log of the held-out prompts' songs."""
        return self.judge.figures(judged, prompt_keys(self.unseen), everywhere)

    @torch.no_grad()
    def judged(self) -> tuple[Tensor, Judged]:
        """Songs (B, T) of the held-out prompts, from the same noise in every call, and scores."""
        songs = self.generator(self.unseen, torch.Generator().manual_seed(12345)).detach()
        return songs, self.judge(list(songs), self.unseen)

    def trained(self) -> dict[str, Tensor]:
        """The weights that are trained."""
        named = self.generator.named_parameters()
        return {name: p.detach().cpu() for name, p in named if p.requires_grad}

    def save(self) -> None:
        """Write a checkpoint; its noise is that of the main process."""
        folder = Path(self.own.output_dir) / f"checkpoint-{self.step}"
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self.trained(), folder / "trained.safetensors")
            state = {"step": self.step, "optimizer": self.optimizer.state_dict(),
                     "random": self.random.get_state()}  # fmt: skip
            torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Load a checkpoint."""
        weights = load_file(folder / "trained.safetensors")
        with torch.no_grad():
            for name, parameter in self.generator.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        state = torch.load(folder / "state.pt", weights_only=True)
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.is_main_process:
            self.random.set_state(state["random"])
        self.log.keep_until(self.step)

    def finish(self, before: tuple[Tensor, Judged]) -> None:
        """Weights, figures of the held-out prompts, curves and songs."""
        after = self.judged()
        interrupted = self.step < self.own.max_steps
        if interrupted:
            self.save()
        if self.own.pipeline is None:
            save_file(self.trained(), Path(self.own.output_dir) / "trained.safetensors")
        else:
            self.generator.save_pretrained(Path(self.own.output_dir) / "adapter")
        for name, (songs, _) in (("before", before), ("after", after)):
            for i, song in enumerate(songs[:4]):
                self.log.song(f"{name}_{i}", song, self.generator.sample_rate)
        if self.rule.rows:
            write_holdout(self.rule, self.own.output_dir, self.settings.formats)
        first, last = before[1], after[1]
        self.log.finish(
            {
                "reward_before": first.mean,
                "reward_after": last.mean,
                "reward_std_before": statistics.pstdev(first.known),
                "guard_rate_before": statistics.fmean(bool(row["flags"]) for row in first.scored),
                "guard_rate_after": statistics.fmean(bool(row["flags"]) for row in last.scored),
                "distance_before": self.figures(first).get("apex/distance"),
                "distance_after": self.figures(last).get("apex/distance"),
                "turn": None if self.rule.turn is None else vars(self.rule.turn),
                "interrupted": interrupted,
                "demonstration": self.reward.demonstration,
            },
            self.own,
            self.settings,
        )
        if interrupted:
            print(how_to_go_on(self.own.output_dir))


if __name__ == "__main__":
    main()
