"""Waveform gradient ascent: change a song so that its score rises.

Shape key: T = samples, K = steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from apex_reward.model import ApexReward


@dataclass(frozen=True)
class Climb:
    """What gradient steps did to a song.

    Attributes:
        song: (T,) float32, after the last step.
        rewards: K + 1 rewards, before the first step and after each one.
        predicted: rise of the first step by the gradient alone (gradient times change).
    """

    song: NDArray[np.float32]
    rewards: list[float]
    predicted: float


def climb(
    model: ApexReward,
    song: NDArray[np.float32],
    sample_rate: int,
    steps: int = 8,
    size: float = 0.003,
    mix: str = "aesthetics",
) -> Climb:
    """Raise the reward of a song by normalised gradient steps on its samples.

    Each step adds the gradient of `model.reward`, scaled to an RMS of `size` times the song's.

    Args:
        song: (T,) samples in [-1, 1].
        steps: K.
        size: relative length of a step; 0.003 is 50 dB below the song.
        mix: the reward to raise.
    """
    import torch

    wave = torch.from_numpy(np.array(song, dtype=np.float32))[None].requires_grad_(True)
    reach = size * float(wave.detach().square().mean().sqrt())
    rewards, predicted = [], 0.0
    for step in range(steps):
        reward = model.reward(wave, sample_rate, mix=mix).sum()
        (gradient,) = torch.autograd.grad(reward, wave)
        rewards.append(reward.item())
        change = reach * gradient / gradient.square().mean().sqrt().clamp_min(1e-20)
        moved = (wave.detach() + change).clamp(-1, 1)
        if step == 0:
            predicted = float((gradient * (moved - wave.detach())).sum())
        wave = moved.requires_grad_(True)
    with torch.no_grad():
        rewards.append(float(model.reward(wave, sample_rate, mix=mix)))
    return Climb(wave.detach()[0].numpy(), rewards, predicted)
