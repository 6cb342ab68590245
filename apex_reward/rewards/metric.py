"""A reward as a metric of torchmetrics (extra `torchmetrics`).

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from apex_reward.model.encode import Lengths, Prompts
from apex_reward.rewards.reward import Models, Reward, as_reward


class RewardMetric(Metric):
    """Mean reward, after guards, of all songs it was updated with, on all processes.

        metric = RewardMetric(reward, sample_rate=24_000)
        metric.update(waveforms)
        metric.compute()

    The reward's models stay on their own device, also under `metric.to(...)`.

    Args:
        reward: a `Reward`, or models for their default mix.
        sample_rate: Hz of the waveforms.
        kwargs: of `torchmetrics.Metric`.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, reward: Reward | Models, sample_rate: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reward, self.sample_rate = as_reward(reward), sample_rate
        self.reward.check_single()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("songs", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.total: Tensor
        self.songs: Tensor

    def update(self, waveforms: Tensor, lengths: Lengths = None, prompts: Prompts = None) -> None:
        """Judge a batch; a song that cannot be heard (NaN, empty) is left out.

        Args:
            waveforms: float tensor (B, T) or (B, C, T) in [-1, 1], zero-padded on the right.
            lengths: (B,) real samples of each song; None where no song is padded.
            prompts: B texts, for models that read them.
        """
        ends = (
            [waveforms.shape[-1]] * len(waveforms) if lengths is None else list(map(int, lengths))
        )
        songs = [wave[..., :end] for wave, end in zip(waveforms, ends, strict=True)]
        rows = self.reward.judge(songs, prompts, sample_rate=self.sample_rate)
        rewards = [row["reward"] for row in rows if row["error"] is None]
        self.total += sum(rewards)
        self.songs += len(rewards)

    def compute(self) -> Tensor:
        """The mean reward, a scalar; NaN where no song was heard."""
        return (self.total / self.songs).float()
