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

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from apex_reward.errors import UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
FEW_SONGS = 30
_CHUNK_CELLS = 200_000  # counts of a chunk: 1.6 MB, so that its sums run in the processor's cache


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


def resample_counts(
    n: int, *, rounds: int = 1000, seed: int = 0, clusters: npt.ArrayLike | None = None
) -> Iterator[FloatArray]:
    """How often each of n rows is drawn: arrays (r, n) of counts, `rounds` rows in all.

    Every bootstrap of the package uses these draws. A round draws rows, or whole clusters, with
    replacement. Clusters are numbered by their sorted labels, so that the draws of a cluster do
    not depend on the order of rows.

    Args:
        clusters: (n,) labels for rows that are not independent (votes on one prompt, segments of
            one song).
    """
    rng = np.random.default_rng(seed)
    codes = None if clusters is None else cluster_codes(clusters)
    units = n if codes is None else int(codes.max(initial=-1)) + 1
    step = max(1, _CHUNK_CELLS // max(n, 1))
    for start in range(0, rounds if n else 0, step):
        rows = min(step, rounds - start)
        # 32-bit draws are the same numbers as 64-bit ones below 2^31, in a quarter of the time.
        drawn = rng.integers(0, units, size=(rows, units), dtype=np.int32)
        cells = drawn + (np.arange(rows, dtype=np.intp) * units)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * units).reshape(rows, units)
        yield np.asarray(counts if codes is None else counts[:, codes], dtype=np.float64)


def bootstrap(
    statistic: Callable[[FloatArray], npt.ArrayLike],
    n: int,
    *,
    rounds: int = 1000,
    seed: int = 0,
    clusters: npt.ArrayLike | None = None,
) -> FloatArray:
    """(R, ...) values of a statistic over resampled rows (Efron 1979).

    Args:
        statistic: takes (r, n) counts of `resample_counts` and returns (r, ...) values.
        n: number of rows.
        rounds: R, number of resamples.
        clusters: (n,) labels; whole clusters are drawn.
    """
    draws = resample_counts(n, rounds=rounds, seed=seed, clusters=clusters)
    values = [np.asarray(statistic(counts), np.float64) for counts in draws]
    return np.concatenate(values) if values else np.empty(0)


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: npt.ArrayLike,
    rounds: int = 1000,
    seed: int = 0,
    clusters: npt.ArrayLike | None = None,
) -> tuple[float, float]:
    """95% percentile bootstrap interval of `statistic(*arrays)`, for one without weights.

    Args:
        statistic: takes resampled rows of every array, returns one number.
        arrays: each (N, ...), resampled together along the first axis.
        rounds, seed, clusters: as for `bootstrap`.

    Returns:
        (lower, upper) of `percentile_interval`.
    """
    columns = [np.asarray(array) for array in arrays]
    sizes = {len(column) for column in columns}
    if len(sizes) != 1:
        raise UsageError(f"arrays of different lengths: {sorted(sizes)}; they share their rows")
    n = sizes.pop()

    def each(counts: FloatArray) -> list[float]:
        drawn = (np.repeat(np.arange(n), row.astype(np.intp)) for row in counts)
        return [statistic(*(column[rows] for column in columns)) for rows in drawn]

    samples = bootstrap(each, n, rounds=rounds, seed=seed, clusters=clusters)
    return percentile_interval(samples)


def cluster_codes(clusters: npt.ArrayLike) -> IntArray:
    """(N,) cluster numbers 0 to C - 1, in the order of the sorted labels."""
    return np.asarray(np.unique(np.asarray(clusters), return_inverse=True)[1], dtype=np.intp)


def percentile_interval(samples: npt.ArrayLike) -> tuple[float, float]:
    """The central 95% of (R,) samples, NaN left out.

    (NaN, NaN) if no sample is left or all are equal: resamples that never differ, as those of two
    songs or of one cluster, do not show how sure a figure is.
    """
    values = np.asarray(samples, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def stretched_interval(samples: npt.ArrayLike, value: float, units: int) -> tuple[float, float]:
    """`percentile_interval` about a mean, stretched by Student's t for few resampled units.

    Args:
        samples: (R,) the mean in every round.
        value: the mean itself.
        units: how many songs or clusters were resampled; below two the interval is (NaN, NaN).
    """
    low, high = percentile_interval(samples)
    if units < 2:
        return math.nan, math.nan
    # Resampled means of n units spread too little by sqrt((n - 1) / n).
    stretch = special.stdtrit(units - 1, 0.975) / special.ndtri(0.975)
    stretch *= math.sqrt(units / (units - 1))
    return float(value - stretch * (value - low)), float(value + stretch * (high - value))


@functools.lru_cache(4096)
def binomial_p_value(successes: int, trials: int) -> float:
    """Two-sided exact binomial test of `successes` in `trials` against one half; 1 without trials.

    >>> round(binomial_p_value(1, 10), 9)
    0.021484375
    """
    if not 0 <= successes <= trials:
        raise UsageError(f"{successes} successes in {trials} trials; expected 0 to {trials}")
    return float(stats.binomtest(successes, trials).pvalue) if trials else 1.0


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """(M,) p-values adjusted for as many tests as have one (Holm 1979); NaN stays NaN.

    >>> holm([0.01, 0.04, float("nan"), 0.03]).round(2).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = int(np.isfinite(p).sum())
    order = np.argsort(p, kind="stable")[:known]  # NaN comes last
    adjusted = np.full(len(p), np.nan)
    raised = np.maximum.accumulate(p[order] * np.arange(known, 0, -1))
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted


def few_songs(counts: Mapping[str, int]) -> list[str]:
    """A sentence for every split of fewer than 30 songs, by name."""
    return [
        f"the split {name} has {count} songs; figures of fewer than {FEW_SONGS} songs vary widely"
        for name, count in counts.items()
        if count < FEW_SONGS
    ]


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as (N,) float64; raises UsageError unless they are one-dimensional and equally long."""
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise UsageError(f"shapes {a.shape} and {b.shape}; expected two (N,) inputs of one length")
    return a, b
