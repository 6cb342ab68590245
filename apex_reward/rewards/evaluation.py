"""A reward as a measure of evaluation loops: generated songs in, figures out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.model.encode import Prompts
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import Row


class Evaluation:
    """Means of a reward over generated songs, in the form of the library `evaluate`.

        evaluation = Evaluation(reward)
        evaluation.compute(predictions=songs, sample_rate=24_000)   # {"reward": 0.71, ...}

    `add_batch` collects songs over the batches of a loop; `compute` takes what is collected, and
    what it is given, and starts anew.

    Args:
        reward: a `Reward`, or models for their default mix.
    """

    def __init__(self, reward: Reward | Models) -> None:
        self.reward = as_reward(reward)
        self.reward.check_single()
        self._rows: list[Row] = []
        self._others: list[Row] = []

    def add_batch(
        self,
        *,
        predictions: Sequence[Any],
        references: Sequence[Any] | None = None,
        prompts: Prompts = None,
        sample_rate: int | None = None,
    ) -> None:
        """Judge a batch of songs; arguments as in `compute`.

        Raises:
            UsageError: references for some batches only, or another number of them.
        """
        before = len(self._rows)
        if references is not None and len(references) != len(predictions):
            raise UsageError(
                f"{len(references)} references for {len(predictions)} predictions; give one each"
            )
        if before and (references is None) == bool(self._others):
            raise UsageError("give references with every batch, or with none")
        self._rows += self.reward.judge(predictions, prompts, sample_rate=sample_rate)
        if references is not None:
            self._others += self.reward.judge(references, prompts, sample_rate=sample_rate)

    def compute(
        self,
        *,
        predictions: Sequence[Any] | None = None,
        references: Sequence[Any] | None = None,
        prompts: Prompts = None,
        sample_rate: int | None = None,
    ) -> dict[str, float]:
        """Means over all songs.

        Args:
            predictions: songs as `Reward.judge` takes them.
            references: a song each to compare with: of the policy before, or by people.
            prompts: one per song, for models that read them.
            sample_rate: Hz of tensors and arrays.

        Returns:
            `reward` (after guards) and each head, means over the songs that can be heard; `songs`;
            `unheard`, the share that cannot; `flagged`, the share with a flag; with references
            `win_rate`, the share of pairs whose prediction has the higher reward, ties one half.

        Raises:
            UsageError: no songs, or none that can be heard.
        """
        if predictions is not None:
            self.add_batch(
                predictions=predictions,
                references=references,
                prompts=prompts,
                sample_rate=sample_rate,
            )
        rows, others = self._rows, self._others
        self._rows, self._others = [], []
        heard = [row for row in rows if row["error"] is None]
        if not heard:
            raise UsageError(f"none of {len(rows)} songs can be heard; give predictions=")
        names = ("reward", *(head.name for head in self.reward.heads))
        figures = {name: statistics.fmean(row[name] for row in heard) for name in names}
        figures |= {
            "songs": len(rows),
            "unheard": 1 - len(heard) / len(rows),
            "flagged": sum(bool(row["flags"]) for row in rows) / len(rows),
        }
        wins = [_win(a["reward"], b["reward"]) for a, b in zip(rows, others, strict=False)]
        known = [win for win in wins if win is not None]
        return {**figures, "win_rate": statistics.fmean(known)} if known else figures


def _win(mine: float | None, other: float | None) -> float | None:
    """1 for a win, one half for a tie, 0 for a loss; None where a song was not heard."""
    if mine is None or other is None:
        return None
    return 0.5 if mine == other else float(mine > other)
