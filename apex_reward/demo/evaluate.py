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

    def wins(self) -> NDArray[np.bool_]:
        """(N, D, 3): the clean version scores above the damaged one."""
        return np.asarray(self.values[..., :1] > self.values[..., 1:])

    def falling(self) -> NDArray[np.bool_]:
        """(N, D): the score falls at every step, clean > severity 1 > 2 > 3."""
        return np.asarray((np.diff(self.values, axis=-1) < 0).all(axis=-1))

    def table(self) -> list[dict[str, str | float]]:
        """A row per damage and one for all: shares of pairs won and of falling series, mean drop.

        Columns `drop_1` to `drop_3` are the mean score differences, clean minus damaged.
        """
        wins, falling = self.wins(), self.falling()
        drops = self.values[..., :1] - self.values[..., 1:]
        rows: list[dict[str, str | float]] = []
        for name, at in [
            *((d, [i]) for i, d in enumerate(DAMAGES)),
            ("all", [*range(len(DAMAGES))]),
        ]:
            mean = drops[:, at].mean(axis=(0, 1))
            rows.append(
                {
                    "damage": name,
                    "pairs_won": float(wins[:, at].mean()),
                    "series_falling": float(falling[:, at].mean()),
                    **{f"drop_{s}": float(mean[i]) for i, s in enumerate(SEVERITIES)},
                }
            )
        return rows


def score_damage(
    model: ApexReward, songs: Sequence[NDArray[np.float32]], sample_rate: int = 24_000
) -> DamageScores:
    """Score every song clean and with every damage at every severity.

    Args:
        songs: N mono songs (T,) at `sample_rate`; song i is damaged with seed i.
    """
    values = np.empty((len(songs), len(DAMAGES), 1 + len(SEVERITIES)))
    for number, song in enumerate(songs):
        versions = [song] + [
            damage(song, name, severity, number, sample_rate)
            for name in DAMAGES
            for severity in SEVERITIES
        ]
        means = []
        for version in versions:
            with torch.no_grad():
                scores = model(torch.from_numpy(version)[None], sample_rate)
            means.append(float(scores.stack()[0, 2:].mean()))
        values[number, :, 0] = means[0]
        values[number, :, 1:] = np.reshape(means[1:], (len(DAMAGES), len(SEVERITIES)))
    return DamageScores(values)
