"""What a reward function logs of a batch, through TRL's two loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from apex_reward.rewards.drift import drift_figures
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.stacks.batch import SongBatch, member_spread
from apex_reward.rewards.stacks.groups import everywhere, share_without_signal


class RewardLog:
    """One batch's figures.

    Args:
        name: what logged names begin with, before a slash.
        reward: for heads and guards.
        batch: what was judged.
        keys: B prompt keys.
        rewards: B rewards after guards.
        reference: (M, W) embeddings of reference songs, for the distance; None: none is logged.
    """

    def __init__(
        self,
        name: str,
        reward: Reward,
        batch: SongBatch,
        keys: Sequence[str],
        rewards: Sequence[float | None],
        reference: Tensor | None = None,
    ) -> None:
        self._name, self._reward, self._batch = name, reward, batch
        self._keys, self._rewards, self._reference = keys, rewards, reference
        scores = batch.scores
        rows = [] if scores is None else scores.rows()
        self._rows: list[dict[str, Any]] = [
            {**row, "reward_raw": raw, "flags": tripped}
            for row, raw, tripped in zip(rows, batch.raw, batch.flags, strict=True)
        ]

    def metrics(self, log_metric: Callable[[str, float], None] | None) -> None:
        """Means over the batch; every process must call it, also one that logs nothing."""
        entries, _ = everywhere(list(zip(self._keys, self._rewards, self.vectors(), strict=True)))
        if log_metric is None:
            return
        rows, count = self._rows, self._batch.count
        keys, rewards, vectors = zip(*entries, strict=True) if entries else ((), (), ())
        found = {
            "zero_variance_groups": share_without_signal(keys, rewards),
            "undecodable": 1 - len(rows) / max(1, count),
            **self._drift(keys, vectors),
        }
        if rows:
            for name in [name for name in rows[0] if name != "flags"]:
                found[name] = sum(row[name] for row in rows) / len(rows)
            found["guard_any"] = sum(bool(row["flags"]) for row in rows) / len(rows)
            for guard in self._reward.guards.names:
                found[f"guard_{guard}"] = sum(guard in row["flags"] for row in rows) / len(rows)
        scores = self._batch.scores
        between = None if scores is None else member_spread(self._reward, scores)
        if between is not None:
            found["reward_spread"] = float(between.mean())
        for name, value in found.items():
            log_metric(f"{self._name}/{name}", value)

    def _drift(self, keys: Sequence[str], vectors: Sequence[Tensor | None]) -> dict[str, float]:
        songs = [
            (key, found) for key, found in zip(keys, vectors, strict=True) if found is not None
        ]
        if not songs:
            return {}
        names, embedded = zip(*songs, strict=True)
        return drift_figures(torch.stack(embedded), names, self._reference)

    def vectors(self) -> list[Tensor | None]:
        """A song's embedding (W,) per completion, None where there is none."""
        vectors: list[Tensor | None] = [None] * self._batch.count
        if self._batch.vectors is not None:
            for i, vector in zip(self._batch.present, self._batch.vectors, strict=True):
                vectors[i] = vector
        return vectors

    def columns(self, log_extra: Callable[[str, list[Any]], None] | None) -> None:
        """Each head, `reward_raw` and `flags` per completion; None where there is no song."""
        if log_extra is None:
            return
        names = [head.name for head in self._reward.heads]
        for name in (*names, "reward_raw", "flags"):
            values: list[Any] = [None] * self._batch.count
            for i, row in zip(self._batch.present, self._rows, strict=True):
                values[i] = ";".join(row[name]) if name == "flags" else row[name]
            log_extra(f"{self._name}/{name}", values)
