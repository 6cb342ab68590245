"""Bootstrap intervals of regression measures, all heads and measures from the same resamples.

A resample of songs is a count per song, and each measure has a weighted form: no sorting per
round, so that a thousand rounds over a large test split take seconds. The resamples are those of
`apex_reward.metrics.bootstrap_interval` with the same seed.

Shape key: N = songs, H = heads, R = rounds, G = groups of tied values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from apex_reward.metrics import percentile_interval, resample_counts

METRICS = ("mse", "mae", "pearson", "spearman")
FloatArray = npt.NDArray[np.float64]
Intervals = dict[str, dict[str, tuple[float, float]]]


def bootstrap_intervals(
    pred: npt.ArrayLike, label: npt.ArrayLike, heads: Sequence[str], rounds: int, seed: int
) -> Intervals:
    """95% percentile intervals of the four measures per head, over songs.

    Args:
        pred, label: (N, H).
        rounds: R, number of resamples; with 0 every interval is (NaN, NaN).
    """
    x, y = np.asarray(pred, np.float64), np.asarray(label, np.float64)
    n = len(x)
    samples = np.full((rounds, x.shape[1], len(METRICS)), np.nan)
    ranked = [(_Ranks(x[:, head]), _Ranks(y[:, head])) for head in range(x.shape[1])]
    squared, absolute = (x - y) ** 2, np.abs(x - y)
    drawn = chain.from_iterable(resample_counts(n, rounds=rounds, seed=seed))
    for number, counts in enumerate(drawn):
        samples[number, :, 0] = counts @ squared / n
        samples[number, :, 1] = counts @ absolute / n
        for head, (ranks_x, ranks_y) in enumerate(ranked):
            samples[number, head, 2] = weighted_pearson(x[:, head], y[:, head], counts)
            samples[number, head, 3] = weighted_pearson(ranks_x(counts), ranks_y(counts), counts)
    return {
        name: {
            metric: percentile_interval(samples[:, head, column])
            for column, metric in enumerate(METRICS)
        }
        for head, name in enumerate(heads)
    }


def weighted_pearson(x: FloatArray, y: FloatArray, weight: FloatArray) -> float:
    """Pearson correlation of (N,) inputs that occur `weight` times; NaN where one is constant."""
    present = weight > 0
    if np.ptp(x[present]) == 0 or np.ptp(y[present]) == 0:
        return float("nan")
    total = weight.sum()
    x, y = x - weight @ x / total, y - weight @ y / total
    return float(weight @ (x * y) / np.sqrt((weight @ (x * x)) * (weight @ (y * y))))


class _Ranks:
    """Average ranks of fixed values under any counts: call with (N,) counts for (N,) ranks."""

    def __init__(self, values: FloatArray) -> None:
        _, self.group = np.unique(values, return_inverse=True)

    def __call__(self, counts: FloatArray) -> FloatArray:
        per_group = np.bincount(self.group, weights=counts)
        last = np.cumsum(per_group)
        return np.asarray((last - (per_group - 1) / 2)[self.group])
