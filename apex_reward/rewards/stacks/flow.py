"""flow_grpo and Resonate: functions of a batch of generated songs.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apex_reward.rewards.reward import Models, Reward
from apex_reward.rewards.stacks.single import StackJudge

Scored = tuple[np.ndarray[Any, np.dtype[np.float32]], dict[str, Any]]


def flow_grpo_reward(
    reward: Reward | Models, sample_rate: int, undecodable: float | None = None
) -> Callable[[Sequence[Any], Sequence[str], Any], Scored]:
    """A function `(samples, prompts, metadata) -> (scores (B,), {})`, as flow_grpo calls it.

    Args:
        sample_rate: Hz of the samples (B, T) or (B, C, T) in [-1, 1].
        undecodable: as in `StackJudge`.
    """
    judge = StackJudge(reward, sample_rate, undecodable)

    def score(samples: Sequence[Any], prompts: Sequence[str], metadata: Any = None) -> Scored:
        return _scored(judge, list(samples), prompts)

    return score


def resonate_reward(
    reward: Reward | Models, undecodable: float | None = None
) -> Callable[[Sequence[Any], Sequence[str], int], Scored]:
    """A function `(audios (B, T), prompts, sample_rate) -> (scores (B,), {})`, as Resonate's."""
    judge = StackJudge(reward, None, undecodable)

    def score(audios: Sequence[Any], prompts: Sequence[str], sample_rate: int) -> Scored:
        return _scored(judge, [(audio, int(sample_rate)) for audio in audios], prompts)

    return score


def _scored(judge: StackJudge, items: list[Any], prompts: Sequence[str]) -> Scored:
    results = judge(items, prompts)
    return np.array([result["score"] for result in results], np.float32), {}
