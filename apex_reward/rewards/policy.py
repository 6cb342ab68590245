"""What a policy loop of one's own needs: advantages, the clipped objective, options, its files.

For generators that no trainer takes (several codebooks at once, flows); TRL's `GRPOTrainer` has
both for causal language models.

Shape key: B = songs, ... = the decisions of a song (codes, sampler steps).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apex_reward.audio.load import save_wav
from apex_reward.errors import UsageError
from apex_reward.report.run import before_and_after, write_run
from apex_reward.rewards.stacks.groups import group_numbers


def group_advantages(rewards: Tensor, prompts: Sequence[Hashable]) -> Tensor:
    """(B,) rewards less the mean of their prompt's songs; not scaled.

    By its own spread, a group of songs that are all good would push as hard as any other: divide
    by the spread over the whole batch, of all processes.

    Args:
        rewards: (B,) of whole groups.
        prompts: B, equal for songs of one group.

    Raises:
        UsageError: other than one prompt per reward, or a prompt with a single song.
    """
    if rewards.ndim != 1 or len(rewards) != len(prompts):
        raise UsageError(
            f"rewards of shape {tuple(rewards.shape)} for {len(prompts)} prompts; expected (B,)"
        )
    numbers = group_numbers(prompts).to(rewards.device)
    counts = torch.bincount(numbers)
    if len(counts) and int(counts.min()) < 2:
        raise UsageError("a prompt has one song: its advantage is always 0; sample two or more")
    sums = torch.zeros(len(counts), dtype=rewards.dtype, device=rewards.device)
    return rewards - (sums.index_add(0, numbers, rewards) / counts)[numbers]


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


def drift(new: Tensor, reference: Tensor) -> Tensor:
    """KL of the policy from its reference, by the estimator that is never below 0.

    exp(r - n) - (r - n) - 1 of log-probabilities n and r (http://joschu.net/blog/kl-approx.html).
    """
    return (reference - new).exp() - (reference - new) - 1


def policy_options(
    parser: argparse.ArgumentParser, *, steps: int, learning_rate: float, clip: float, kl: float
) -> None:
    """The options that policy loops share, with these defaults."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--group", type=int, default=8, help="songs of a prompt")
    parser.add_argument("--prompts-per-step", type=int, default=4, help="of a process")
    parser.add_argument("--passes", type=int, default=2, help="updates of a step")
    parser.add_argument("--micro-batches", type=int, default=1, help="parts of an update")
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--clip", type=float, default=clip, help="of the ratio")
    parser.add_argument("--max-norm", type=float, default=1.0, help="of the gradient")
    parser.add_argument("--kl", type=float, default=kl, help="weight of the KL to the start")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--mix", default="aesthetics")
    parser.add_argument("--loudness", type=float, default=-18.0, help="LUFS before scoring")
    parser.add_argument("--penalty", type=float, default=0.3, help="of a guard that trips")
    parser.add_argument("--reward", default="apex-tiny", help="hub id or folder")


class PolicyRun:
    """What a policy loop leaves in a folder.

    Args:
        output: the folder.
        sample_rate: of the songs, Hz.
    """

    def __init__(self, output: Path, sample_rate: int) -> None:
        self.output, self.sample_rate = output, sample_rate
        self.started = time.monotonic()
        self.history: list[dict[str, Any]] = []
        self._rewards: list[list[float]] = []
        self._songs: dict[str, Tensor] = {}

    def step(
        self,
        accelerator: Any,
        measured: Mapping[str, float],
        songs: Tensor,
        rewards: Tensor,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep and print a step.

        Args:
            measured: what the update came to.
            songs: (B, ..., T) of this process; four of the first and the last step are kept.
            rewards: of all processes.
            rows: what `Reward.judge` said of this process's songs.
        """
        row = {
            "step": len(self.history) + 1,
            "reward": rewards.mean().item(),
            "reward_std": rewards.std().item(),
            **measured,
            "flagged": sum(bool(row["flags"]) for row in rows) / len(rows),
        }
        self.history.append(row)
        self._rewards.append(rewards.tolist())
        self._songs.setdefault("before", songs[:4].cpu())
        self._songs["after"] = songs[:4].cpu()
        accelerator.print({name: round(value, 4) for name, value in row.items()})

    def finish(self, settings: Mapping[str, Any], demonstration: bool) -> dict[str, Any]:
        """Write history, summary, curves and songs; the summary."""
        summary = {
            **before_and_after(self._rewards),
            "seconds": time.monotonic() - self.started,
            "demonstration": demonstration,
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
        }
        panels = {"reward": ["reward"], "KL from the start": ["kl"], "share flagged": ["flagged"]}
        write_run(self.output, self.history, summary, panels)
        folder = self.output / "audio"
        folder.mkdir(parents=True, exist_ok=True)
        for name, songs in self._songs.items():
            for i, song in enumerate(songs):
                save_wav(folder / f"{name}_{i}.wav", song.numpy(), self.sample_rate)
        print({name: value for name, value in summary.items() if name != "settings"})
        return summary
