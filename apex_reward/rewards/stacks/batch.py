"""The core under every stack: a batch of songs to rewards, without collectives, under a lock.

A reward function of a foreign stack runs in threads and in child processes: nothing here gathers
from other ranks, every number is finite, and all of it pickles.

Shape key: B = songs of a call, b = those that could be heard.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from apex_reward.rewards.drift import song_vectors
from apex_reward.rewards.engine import SongResult
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import judged
from apex_reward.rewards.songs import TensorSong
from apex_reward.scores.resolve import spread
from apex_reward.scores.scores import Scores


@dataclass
class SongBatch:
    """What a reward makes of a batch of songs.

    Attributes:
        count: B.
        present: which of them could be heard, rising.
        scores: (b,) heads of those on the CPU; None where there is none.
        raw: b rewards before guards; empty where the mix needs whole prompt groups.
        flags: of each of the b songs, the guards that tripped.
        reasons: why the others could not be heard, by position.
        vectors: (b, W) what the songs are compared by, on the CPU; None without an encoder.
    """

    count: int
    present: list[int] = field(default_factory=list)
    scores: Scores | None = None
    raw: list[float] = field(default_factory=list)
    flags: list[list[str]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    vectors: Tensor | None = None


class BatchJudge:
    """Judges batches of songs in memory for one `Reward`; picklable, safe to call from threads."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"reward": self.reward}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["reward"])  # type: ignore[misc]

    def __call__(
        self,
        songs: Sequence[TensorSong | None],
        prompts: Sequence[Any] | None,
        rewarded: bool = True,
    ) -> SongBatch:
        """Judge B songs.

        Args:
            songs: None for what is no song.
            prompts: B texts; read where a model reads them.
            rewarded: mix the scores too; False where the mix needs whole prompt groups.
        """
        batch = SongBatch(len(songs))
        heard = [(i, song) for i, song in enumerate(songs) if song is not None]
        texts = None if prompts is None else [prompts[i] for i, _ in heard]
        device = self.reward.parts.device.type
        # A trainer's autocast is not the reward's: its numbers are those of `Reward.judge`.
        with self._lock, torch.no_grad(), torch.autocast(device, enabled=False):
            results = self._results([song for _, song in heard], texts)
            found = [
                (i, judged(self.reward, result, rewarded))
                for (i, _), result in zip(heard, results, strict=True)
                if result.error is None
            ]
            batch.vectors = song_vectors(self.reward.parts, results)
        for (i, _), result in zip(heard, results, strict=True):
            if result.error is not None:
                batch.reasons[i] = result.error
        batch.present = [i for i, _ in found]
        if found:
            batch.scores = Scores.of_songs([scores for _, (scores, _, _) in found])
        batch.raw = [raw for _, (_, raw, _) in found if raw is not None]
        batch.flags = [self.reward.guards.flags(measured) for _, (_, _, measured) in found]
        return batch

    def _results(self, songs: list[TensorSong], prompts: list[Any] | None) -> list[SongResult]:
        if not songs:
            return []
        settings = self.reward.engine_settings(block=len(songs))
        if not self.reward.model.reads_text:
            prompts = None
        return list(self.reward.results(songs, prompts, settings=settings))


def member_spread(reward: Reward, scores: Scores) -> Tensor | None:
    """(b,) spread of the mixed reward over an ensemble's members; None without one."""
    if scores.members is None:
        return None
    return spread(
        torch.stack([_mixed(reward, scores.member(i)) for i in range(len(scores.members))])
    )


def _mixed(reward: Reward, scores: Scores) -> Tensor:
    return reward.mix_scores(scores)


__all__ = ["BatchJudge", "SongBatch", "member_spread"]
