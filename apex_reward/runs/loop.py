"""Shared by policy loops: settings, groups of songs with advantages, the clipped gain, files.

For generators without a trainer in TRL (several codebooks at once, flows).

Shape key: B = songs of a step on one process, T = samples, ... = the decisions of a song (codes,
sampler steps).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apex_reward.audio.load import Waveform
from apex_reward.errors import UsageError
from apex_reward.rewards.groups import everywhere, prompt_keys
from apex_reward.runs.interrupt import Interrupt, how_to_go_on
from apex_reward.runs.log import RunLog, before_and_after
from apex_reward.runs.settings import RewardSettings, build_judge, option

PANELS = {
    "reward": ["reward"],
    "KL from the start": ["kl"],
    "spread within a prompt": ["apex/embedding_spread"],
    "distance from the reference": ["apex/distance"],
    "share flagged": ["apex/guard_any"],
}


@dataclass
class StepSettings:
    """Steps over songs of a generator, in TRL's words where it has one."""

    output_dir: str = "runs/loop"
    seed: int = option(0, "random seed of weights, samples and prompts")
    max_steps: int = option(20, "steps, each with fresh songs")
    per_device_train_batch_size: int = option(32, "songs of a process in a micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches of an update")
    learning_rate: float = option(1e-3, "learning rate of AdamW")
    max_grad_norm: float = option(1.0, "norm to which a larger gradient is scaled down")
    prompts: str | None = option(None, "text file with a prompt a line")
    audio_seconds: float = option(30.0, "seconds of a song")


@dataclass
class LoopSettings(StepSettings):
    """A policy loop, in TRL's words where it has one."""

    num_generations: int = option(8, "songs of a prompt")
    num_iterations: int = option(2, "updates of a step")
    epsilon: float = option(0.2, "distance of the ratio from 1 at which it is clipped")
    beta: float = option(0.02, "weight of the KL from the start")
    lora_r: int = option(8, "rank of the LoRA adapter; its alpha is twice the rank")
    warm_steps: int = option(150, "training steps of the small generator")

    def prompts_of_a_step(self) -> int:
        """How many groups a process samples; raises UsageError where songs make no whole ones."""
        songs = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if self.num_generations < 2 or songs % self.num_generations:
            raise UsageError(
                f"--num_generations is {self.num_generations}; expected 2 or more that divide the "
                f"{songs} songs of a step (--per_device_train_batch_size times "
                "--gradient_accumulation_steps)"
            )
        return songs // self.num_generations


class PolicyRun:
    """Draws prompts, judges their songs, and keeps what a policy loop leaves in its folder.

        for _ in run.steps():
            texts = run.draw()
            advantages = run.advantages(texts, generate(texts))
            run.log_step(update(texts, advantages))
        run.finish(policy)

    Args:
        own, settings: of the loop and of the reward.
        accelerator: of accelerate; the main process writes.
        prompts: texts to draw from.
        sample_rate: of the songs, Hz.
        references: makes reference songs where the settings name no folder.
        seconds: length of the songs where all have the same.
    """

    def __init__(
        self,
        own: LoopSettings,
        settings: RewardSettings,
        accelerator: Any,
        prompts: Sequence[str],
        sample_rate: int,
        references: Callable[[], Iterable[Waveform]] | None = None,
        seconds: float | None = None,
    ) -> None:
        self.own, self.settings, self.accelerator = own, settings, accelerator
        self.sample_rate = sample_rate
        shortest: dict[str, Any] = {} if seconds else {"shortest": own.audio_seconds / 2}
        device, writes = str(accelerator.device), accelerator.is_main_process
        self.judge = build_judge(
            settings, sample_rate, references, seconds, loudness=-18.0, device=device, **shortest
        )
        self.log = RunLog(own.output_dir, PANELS, formats=settings.formats, writes=writes)
        self.random = torch.Generator().manual_seed(own.seed + 1000 * accelerator.process_index)
        self.interrupted = False
        orders = (torch.randperm(len(prompts), generator=self.random) for _ in itertools.count())
        self._drawn = (prompts[number] for order in orders for number in order.tolist())
        self._count = own.prompts_of_a_step()
        self._rewards: list[list[float]] = []
        self._row: dict[str, Any] = {}

    def steps(self) -> Iterator[int]:
        """1 to `max_steps`; Ctrl-C ends it after the step."""
        with Interrupt() as interrupt:
            for step in range(1, self.own.max_steps + 1):
                yield step
                self.interrupted = interrupt.asked()
                if self.interrupted:
                    return

    def draw(self) -> list[str]:
        """B prompts, the `num_generations` of a group side by side."""
        texts = itertools.islice(self._drawn, self._count)
        return [text for text in texts for _ in range(self.own.num_generations)]

    def advantages(self, texts: Sequence[str], songs: Tensor) -> Tensor:
        """(B,) rewards of songs (B, ..., T) less their group's mean, over the batch's spread.

        Over its own spread, a group of songs that are all good would push as hard as any other. A
        song without a score earns `Reward.floor`.
        """
        judged = self.judge(list(songs), texts)
        values = torch.tensor(judged.rewards, device=self.accelerator.device)
        everyone = self.accelerator.gather(values)
        self._rewards.append(everyone.tolist())
        deviation = everyone.std()
        self._row = {"reward": everyone.mean().item(), "reward_std": deviation.item()}
        self._row |= self.judge.figures(judged, prompt_keys(texts), everywhere)
        for i, song in enumerate(songs[:4]):
            for name in ("before", "after")[len(self._rewards) > 1 :]:
                self.log.song(f"{name}_{i}", song, self.sample_rate)
        groups = values.view(-1, self.own.num_generations)
        return (groups - groups.mean(dim=1, keepdim=True)).flatten() / (deviation + 1e-6)

    def log_step(self, measured: Mapping[str, float]) -> None:
        """Keep and print the step of the latest `advantages`."""
        row = {"step": len(self._rewards), **self._row, **measured}
        self.log.append(row)
        shown = ("step", "reward", "reward_std", "apex/guard_any", *measured)
        self.accelerator.print({name: round(row[name], 4) for name in shown})

    def finish(self, policy: Any) -> None:
        """Write the adapter of the policy (or of its pipeline), history, summary and curves.

        It ends the group of processes: call it last.
        """
        if self.accelerator.is_main_process:
            self._write(policy)
        self.accelerator.end_training()

    def _write(self, policy: Any) -> None:
        policy.save_pretrained(str(self.log.output / "adapter"))
        summary = {**before_and_after(self._rewards), "interrupted": self.interrupted}
        summary["demonstration"] = self.judge.reward.demonstration
        self.log.finish(summary, self.own, self.settings)
        if self.interrupted:
            print(how_to_go_on(self.own.output_dir))


def clipped_gain(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, float]:
    """What GRPO raises (arXiv 2402.03300, eq. 3, without its KL), decision by decision.

    Args:
        new: log-probabilities (B, ...) of the decisions, on the graph.
        old: the same under the policy that took them.
        advantages: (B,).
        clip: how far the ratio may go from 1 before it stops to count.

    Returns:
        (B, ...) gains, and the share of ratios beyond the clip.
    """
    ratio = (new - old).exp()
    advantage = advantages.reshape(-1, *[1] * (new.ndim - 1))
    cut = ratio.clamp(1 - clip, 1 + clip)
    share = (ratio != cut).float().mean().item()
    return torch.minimum(ratio * advantage, cut * advantage), share
