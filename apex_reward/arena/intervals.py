"""Intervals and claims that hold for a handful of battles as well as for thousands.

Accuracy: Clopper and Pearson's exact interval (1934); a tied score is half right, so the interval
reaches from the one where every tie is wrong to the one where every tie is right, rounded inwards
to whole battles. AUC: Newcombe's method 5 (Statistics in Medicine 25, 2006), a score interval on
Hanley and McNeil's variance; it is never a point, and in the middle its variance is that of the
Mann-Whitney test. Neither draws anything at random.

A direction is claimed from `DIRECTION_MIN` battles on, where the interval leaves one half out and
the rank test's p is at most `DIRECTION_LEVEL`. The level is below 5% so that 1,000 sets of noise
stay under 5% claims at every number of battles, not only on average.

Shape key: N = battles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from apex_reward.metrics import IntArray, correctness

DIRECTION_MIN = 10
"""Fewest battles that a direction is claimed from."""
DIRECTION_LEVEL = 0.025
"""Largest p of the rank test at which a direction is claimed."""

Direction = Literal["agrees", "opposes", "undetermined"]
Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)
_FEW = 8  # losers or winners up to which the rank test counts or draws orders, not a normal curve
_ORDERS = 1999


def accuracy_interval(
    difference: npt.ArrayLike, a_won: npt.ArrayLike, confidence: float = 0.95
) -> Interval:
    """Exact interval of the accuracy of (N,) differences; NaN where N = 0.

    >>> [round(bound, 4) for bound in accuracy_interval([1.0, 2.0, 3.0], [True, True, True])]
    [0.2924, 1.0]
    """
    correct = correctness(difference, a_won)
    n, right = len(correct), float(correct.sum())
    if n == 0:
        return NO_INTERVAL
    tail, low, high = (1 - confidence) / 2, math.floor(right), math.ceil(right)
    return (
        float(stats.beta.ppf(tail, low, n - low + 1)) if low else 0.0,
        float(stats.beta.ppf(1 - tail, high + 1, n - high)) if high < n else 1.0,
    )


def auc_interval(auc: float, won: int, lost: int, confidence: float = 0.95) -> Interval:
    """Interval of an AUC over `won` battles that A won and `lost` that B won; NaN with one class.

    >>> [round(bound, 3) for bound in auc_interval(1.0, 5, 5)]
    [0.643, 1.0]
    """
    if math.isnan(auc):
        return NO_INTERVAL
    z = float(stats.norm.ppf((1 + confidence) / 2))
    extra = (won + lost) / 2 - 1

    def gap(value: float) -> float:
        """Zero where `auc` is z standard errors of `value` away from `value`."""
        spread = 1 + extra * ((1 - value) / (2 - value) + value / (1 + value))
        return (auc - value) ** 2 - z * z * value * (1 - value) * spread / (won * lost)

    # The ends themselves are roots too where the AUC is 0 or 1: look short of them.
    inside = min(max(auc, 1e-9), 1 - 1e-9)
    low = 0.0 if auc == 0 else float(optimize.brentq(gap, 0.0, inside, xtol=1e-12))
    high = 1.0 if auc == 1 else float(optimize.brentq(gap, inside, 1.0, xtol=1e-12))
    return low, high


def rank_test(difference: npt.ArrayLike, a_won: npt.ArrayLike) -> float:
    """Two-sided p of (N,) differences against "the order says nothing"; 1 with one class.

    Mann and Whitney's test: exact for few battles of a side (with ties over 1,999 drawn orders),
    the normal curve with the correction for ties otherwise.
    """
    values, won = np.asarray(difference, dtype=np.float64), np.asarray(a_won, dtype=np.bool_)
    few = min(int(won.sum()), int((~won).sum()))
    if few == 0 or np.ptp(values) == 0:
        return 1.0
    if few > _FEW or len(np.unique(values)) == len(values):
        return float(stats.mannwhitneyu(values[won], values[~won]).pvalue)
    ranks = stats.rankdata(values)
    drawn = np.random.default_rng(0).permuted(np.tile(ranks, (_ORDERS, 1)), axis=1)
    far = np.abs(drawn[:, won].sum(axis=1) - won.sum() * ranks.mean())
    seen = abs(ranks[won].sum() - won.sum() * ranks.mean())
    return float((1 + (far >= seen - 1e-9).sum()) / (_ORDERS + 1))


def hull(*intervals: Sequence[float]) -> Interval:
    """The smallest interval that holds all of them; those that are NaN are left out."""
    known = [interval for interval in intervals if not math.isnan(interval[0])]
    if not known:
        return NO_INTERVAL
    return min(low for low, _ in known), max(high for _, high in known)


def direction(n: int, interval: Sequence[float], p_value: float) -> Direction:
    """`agrees` where the AUC interval lies above 0.5, `opposes` below, else `undetermined`.

    Args:
        n: battles; below `DIRECTION_MIN` nothing is claimed.
        interval: of the AUC, NaN where it is not defined.
        p_value: of `rank_test`; above `DIRECTION_LEVEL` nothing is claimed.
    """
    low, high = interval
    if n < DIRECTION_MIN or p_value > DIRECTION_LEVEL:
        return "undetermined"
    return "agrees" if low > 0.5 else "opposes" if high < 0.5 else "undetermined"


def pairwise_error(won: IntArray, lost: IntArray) -> float:
    """Standard error of an AUC within strata where the order says nothing.

    Args:
        won: (S,) battles of each stratum that the first side won.
        lost: (S,) those that it lost.

    Returns:
        sqrt(sum of w l (w + l + 1) / 12) / sum of w l; NaN without a comparison.
    """
    compared = won * lost
    if not compared.any():
        return math.nan
    return float(np.sqrt((compared * (won + lost + 1)).sum() / 12) / compared.sum())
