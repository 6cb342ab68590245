"""Error, correlation and ranking measures with bootstrap intervals: pure NumPy functions.

Shape key: N = songs or battles, C = clusters (prompts). Inputs are anything NumPy reads as one
dimension of numbers (a CPU tensor too). A measure that the data does not define (no rows, a
constant input, one class only, a NaN among the inputs) is NaN, never an error; inputs of
different lengths raise UsageError.

| function | range | better |
|---|---|---|
| `mse`, `mae` | [0, inf) | lower |
| `pearson`, `spearman` | [-1, 1] | higher |
| `auc`, `accuracy` | [0, 1], chance is 0.5 | higher |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

from apex_reward.errors import UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


def mse(pred: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Mean squared error of (N,) predictions; NaN where N = 0.

    >>> mse([1.0, 3.0], [1.0, 1.0])
    2.0
    """
    x, y = _paired(pred, target)
    return float(np.mean((x - y) ** 2)) if len(x) else math.nan


def mae(pred: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Mean absolute error of (N,) predictions; NaN where N = 0.

    >>> mae([1.0, 3.0], [1.0, 1.0])
    1.0
    """
    x, y = _paired(pred, target)
    return float(np.mean(np.abs(x - y))) if len(x) else math.nan


def pearson(pred: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Linear correlation of two (N,) inputs; NaN where N < 2 or an input is constant.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 12)
    1.0
    """
    x, y = _paired(pred, target)
    # Compared as given: subtracting the mean of equal floats need not leave exact zeros.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(stats.pearsonr(x, y).statistic)


def spearman(pred: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Rank correlation of two (N,) inputs, ties sharing their average rank; NaN as `pearson`."""
    x, y = _paired(pred, target)
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    return pearson(stats.rankdata(x), stats.rankdata(y))


def accuracy(difference: npt.ArrayLike, a_won: npt.ArrayLike) -> float:
    """Share of battles whose higher-scored side won; an equal score counts one half.

    Args:
        difference: (N,) score of A minus score of B, higher is better.
        a_won: (N,) bool, whether A got the vote.

    >>> accuracy([1.0, -2.0, 0.0], [True, True, False])
    0.5
    """
    correct = correctness(difference, a_won)
    return float(correct.mean()) if len(correct) else math.nan


def correctness(difference: npt.ArrayLike, a_won: npt.ArrayLike) -> FloatArray:
    """(N,) 1 where the sign of the difference names the winner, 0 where not, 0.5 for a tie."""
    signed, label = _paired(difference, a_won)
    return np.asarray(0.5 + 0.5 * np.sign(signed) * np.where(label > 0, 1.0, -1.0))


def auc(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Probability that a positive outscores a negative, ties one half (Mann-Whitney U / n+ n-).

    Args:
        score: (N,) any scale.
        label: (N,) bool or 0/1. With one class only the result is NaN.

    >>> auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """
    values, labels = _paired(score, label)
    positive = labels > 0
    n_positive = int(positive.sum())
    n_negative = len(values) - n_positive
    if n_positive == 0 or n_negative == 0 or np.isnan(values).any():
        return math.nan
    rank_sum = stats.rankdata(values)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: npt.ArrayLike,
    rounds: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: npt.ArrayLike | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic(*arrays)` (Efron 1979).

    Args:
        statistic: takes resampled rows of every array, returns one number.
        arrays: each (N, ...), resampled together along the first axis.
        rounds: number of resamples.
        confidence: in (0, 1).
        clusters: (N,) labels; whole clusters are drawn with replacement instead of rows, for
            rows that are not independent (votes on one prompt, segments of one song).

    Returns:
        (lower, upper); rounds whose statistic is NaN are left out, and with none left both are
        NaN. One general loop; `arena.bootstrap` has the fast form for accuracy and AUC.
    """
    columns = [np.asarray(array) for array in arrays]
    sizes = {len(column) for column in columns}
    if len(sizes) != 1:
        raise UsageError(f"arrays of different lengths: {sorted(sizes)}; they share their rows")
    rng = np.random.default_rng(seed)
    n = sizes.pop()
    if n == 0:
        return math.nan, math.nan
    members = cluster_members(clusters) if clusters is not None else None
    samples = np.empty(rounds)
    for index in range(rounds):
        if members is None:
            rows = rng.integers(0, n, size=n)
        else:
            drawn = rng.integers(0, len(members), size=len(members))
            rows = np.concatenate([members[cluster] for cluster in drawn])
        samples[index] = statistic(*(column[rows] for column in columns))
    return percentile_interval(samples, confidence)


def cluster_members(clusters: npt.ArrayLike) -> list[IntArray]:
    """Row numbers of every cluster of (N,) labels, clusters in order of first appearance."""
    codes = cluster_codes(clusters)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1]) if len(codes) else []


def cluster_codes(clusters: npt.ArrayLike) -> IntArray:
    """(N,) cluster numbers 0 to C - 1 in order of first appearance."""
    values = np.asarray(clusters)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.intp)
    order[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(order[inverse], dtype=np.intp)


def percentile_interval(samples: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """The central `confidence` share of (R,) samples, NaN left out; (NaN, NaN) if none is left."""
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}; expected a share between 0 and 1, as 0.95")
    values = np.asarray(samples, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return math.nan, math.nan
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def binomial_p_value(successes: int, trials: int) -> float:
    """Two-sided exact binomial test of `successes` in `trials` against one half.

    Twice the smaller tail, at most 1; with no trials the result is 1.

    >>> binomial_p_value(1, 10)
    0.021484375
    """
    if not 0 <= successes <= trials:
        raise UsageError(f"{successes} successes in {trials} trials; expected 0 to {trials}")
    smaller = min(successes, trials - successes)
    return min(1.0, 2 * float(stats.binom.cdf(smaller, trials, 0.5)))


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as (N,) float64; raises UsageError unless they are one-dimensional and equally long."""
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise UsageError(f"shapes {a.shape} and {b.shape}; expected two (N,) inputs of one length")
    return a, b
