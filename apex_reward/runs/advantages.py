"""Advantages and the clipped objective of policy loops.

For generators without a trainer in TRL (several codebooks at once, flows). TRL's `GRPOTrainer`
computes both for causal language models.

Shape key: B = songs, ... = the decisions of a song (codes, sampler steps).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.rewards.groups import group_numbers


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
