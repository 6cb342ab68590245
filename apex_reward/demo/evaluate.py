"""How known damage changes a model's scores: clean versions against damaged ones.

Shape key: N = songs, D = damages, V = versions of a song (clean, severity 1, 2, 3),
T = samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from apex_reward.demo.damage import DAMAGES, SEVERITIES, damage
from apex_reward.model import ApexReward


@dataclass(frozen=True)
class DamageScores:
    """The mean of the aesthetic heads, (N, D, V) in [1, 5]; version 0 is the clean song."""

    values: NDArray[np.float64]

    @classmethod
    def of_versions(cls, means: NDArray[np.float64]) -> DamageScores:
        """From (N, 1 + 3 D) means: a song clean, then each damage at severity 1, 2 and 3."""
        damaged = means[:, 1:].reshape(len(means), len(DAMAGES), len(SEVERITIES))
        clean = np.broadcast_to(means[:, :1, None], (*damaged.shape[:2], 1))
        return cls(np.concatenate([clean, damaged], axis=2))

    def table(self) -> list[dict[str, str | float]]:
        """A row per damage and one for all: shares of pairs won and of falling series, mean drop.

        The clean version wins a pair where it scores higher. A series falls where the score falls
        at every step, clean > severity 1 > 2 > 3. Columns `drop_1` to `drop_3` are the mean score
        differences, clean minus damaged.
        """
        drops = self.values[..., :1] - self.values[..., 1:]
        falling = np.all(np.diff(self.values, axis=-1) < 0, axis=-1)
        parts = {name: slice(i, i + 1) for i, name in enumerate(DAMAGES)} | {"all": slice(None)}
        rows: list[dict[str, str | float]] = []
        for name, part in parts.items():
            mean = drops[:, part].mean(axis=(0, 1))
            rows.append({
                "damage": name,
                "pairs_won": float((drops[:, part] > 0).mean()),
                "series_falling": float(falling[:, part].mean()),
                **{f"drop_{s}": float(mean[i]) for i, s in enumerate(SEVERITIES)},
            })  # fmt: skip
        return rows


def score_damage(
    model: ApexReward, songs: Sequence[NDArray[np.float32]], sample_rate: int = 24_000
) -> DamageScores:
    """Score every song clean and with every damage at every severity.

    Args:
        songs: N mono songs (T,) at `sample_rate`; song i is damaged with seed i.
    """
    kinds = [(name, severity) for name in DAMAGES for severity in SEVERITIES]
    means = []
    for number, song in enumerate(songs):
        versions = [damage(song, *kind, number, sample_rate) for kind in kinds]
        for version in (song, *versions):
            with torch.no_grad():
                scores = model(torch.from_numpy(version)[None], sample_rate)
            means.append(float(scores.stack()[0, 2:].mean()))
    return DamageScores.of_versions(np.reshape(means, (len(songs), 1 + len(kinds))))
