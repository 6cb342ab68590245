"""Stratified sampling: balance platforms and split a data set, by seed and nothing else.

Shape key: N = songs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
# The paper's 85/10/5, dealt to every run of twenty neighbours.
SHARES = {"train": 17, "test": 2, "val": 1}
RUN = sum(SHARES.values())


def balance_platforms(platforms: Sequence[str], scores: npt.ArrayLike, seed: int) -> IntArray:
    """Rows to keep, rising, so that every platform has as many as the smallest.

    A platform's surplus is dropped evenly over the range of its scores: its rows are sorted by
    score and cut into as many runs as are wanted, and one row is drawn from each run.

    Args:
        platforms: N names.
        scores: (N,) what the sampling is stratified by (the streams score).
    """
    names, values = np.asarray(platforms), np.asarray(scores, np.float64)
    found, counts = np.unique(names, return_counts=True)
    if len(found) < 2:
        return np.arange(len(names))
    kept: list[int] = []
    for number, name in enumerate(found):
        rows = np.flatnonzero(names == name)
        rng = np.random.default_rng([seed, number])
        ordered = rows[np.lexsort((rows, values[rows]))]
        kept += [int(rng.choice(run)) for run in np.array_split(ordered, int(counts.min()))]
    return np.sort(np.array(kept, np.int64))


def split_songs(platforms: Sequence[str], scores: npt.ArrayLike, seed: int) -> list[str]:
    """The split of each of N songs, stratified by platform and score.

    Songs are sorted by platform and score; every run of twenty neighbours is dealt 17 to train,
    2 to test and 1 to val, in random order. A shorter last run is dealt as nearly so as it can.
    """
    names, values = np.asarray(platforms), np.asarray(scores, np.float64)
    order = np.lexsort((np.arange(len(names)), values, names))
    rng = np.random.default_rng([seed, 1])
    result = np.empty(len(names), object)
    for start in range(0, len(order), RUN):
        rows = order[start : start + RUN]
        result[rows] = rng.permutation(np.array(_deal(len(rows)), object))
    return [str(split) for split in result]


def _deal(count: int) -> list[str]:
    """Splits of `count` songs by largest remainder; ties favour the smaller split."""
    target = {split: count * share // RUN for split, share in SHARES.items()}
    by_remainder = sorted(SHARES, key=lambda s: (-(count * SHARES[s] % RUN), SHARES[s]))
    for split in by_remainder[: count - sum(target.values())]:
        target[split] += 1
    return [split for split, number in target.items() for _ in range(number)]
