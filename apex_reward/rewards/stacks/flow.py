"""flow_grpo and Resonate: functions of a batch of generated songs.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from apex_reward.rewards.judge import Judge
from apex_reward.rewards.reward import Models, Reward

Scored = tuple[np.ndarray[Any, np.dtype[np.float32]], dict[str, Any]]


def flow_grpo_reward(
    reward: Reward | Models, sample_rate: int, undecodable: float | Literal["floor"] = "floor"
) -> Callable[[Sequence[Any], Sequence[str], Any], Scored]:
    """A function `(samples, prompts, metadata) -> (scores (B,), {})`, as flow_grpo calls it.

    Args:
        sample_rate: Hz of the samples (B, T) or (B, C, T) in [-1, 1].
        undecodable: as in `apex_reward.rewards.judge.Judge`.
    """
    judge = Judge(reward, sample_rate=sample_rate, undecodable=undecodable)

    def score(samples: Sequence[Any], prompts: Sequence[str], metadata: Any = None) -> Scored:
        return _scored(judge, samples, prompts, None)

    return score


def resonate_reward(
    reward: Reward | Models, undecodable: float | Literal["floor"] = "floor"
) -> Callable[[Sequence[Any], Sequence[str], int], Scored]:
    """A function `(audios (B, T), prompts, sample_rate) -> (scores (B,), {})`, as Resonate's."""
    judge = Judge(reward, undecodable=undecodable)

    def score(audios: Sequence[Any], prompts: Sequence[str], sample_rate: int) -> Scored:
        return _scored(judge, audios, prompts, int(sample_rate))

    return score


def _scored(
    judge: Judge, samples: Sequence[Any], prompts: Sequence[str], sample_rate: int | None
) -> Scored:
    found = judge(list(samples), list(prompts), sample_rate=sample_rate)
    return np.array(found.rewards, np.float32), {}
