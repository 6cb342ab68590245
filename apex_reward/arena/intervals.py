"""Intervals and tests that hold for a handful of battles as well as for thousands.

- Accuracy: the exact interval of Clopper and Pearson (1934). A battle whose two scores are equal
  is half right. Half a battle too many is wrong at the lower end and right at the upper end.
- AUC: Newcombe's method 5 (Statistics in Medicine 25, 2006), a score interval on Hanley and
  McNeil's variance. It is never a point, and at 0.5 its variance is that of the Mann-Whitney test.
- By prompt: `metrics.stretched_interval` of a bootstrap over prompts, and
  never narrower than the interval over battles. One prompt has no interval.

Shape key: N = battles, R = rounds.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from apex_reward import metrics
from apex_reward.metrics import FloatArray, IntArray

Interval = tuple[float, float]
_FEW = 8  # losers or winners up to which a rank test with ties permutes the votes
_ORDERS = 1999


def accuracy_interval(difference: npt.ArrayLike, a_won: npt.ArrayLike) -> Interval | None:
    """Exact interval of the accuracy of (N,) differences; None where N = 0.

    >>> [round(bound, 4) for bound in accuracy_interval([1.0, 2.0, 3.0], [True, True, True])]
    [0.2924, 1.0]
    """
    right = metrics.correctness(difference, a_won)
    n, total = len(right), float(right.sum())
    if n == 0:
        return None
    return _exact(math.floor(total), n)[0], _exact(math.ceil(total), n)[1]


@functools.lru_cache(4096)
def _exact(count: int, n: int) -> Interval:
    ends = stats.binomtest(count, n).proportion_ci(method="exact")
    return float(ends.low), float(ends.high)


def auc_interval(auc: float, won: float, lost: float) -> Interval | None:
    """Interval of an AUC over `won` battles that A won and `lost` that B won.

    None where the AUC is NaN, as with one class only.

    >>> [round(bound, 3) for bound in auc_interval(1.0, 5, 5)]
    [0.643, 1.0]
    """
    if math.isnan(auc):
        return None
    z = float(special.ndtri(0.975))
    extra = (won + lost) / 2 - 1

    def gap(value: float) -> float:
        """Zero where `auc` is z standard errors of `value` away from `value`."""
        spread = 1 + extra * ((1 - value) / (2 - value) + value / (1 + value))
        return (auc - value) ** 2 - z * z * value * (1 - value) * spread / (won * lost)

    # 0 and 1 are roots too where the AUC is 0 or 1: the search stops short of them.
    inside = min(max(auc, 1e-9), 1 - 1e-9)
    low = 0.0 if auc <= 0 else float(optimize.brentq(gap, 0.0, inside, xtol=1e-12))
    high = 1.0 if auc >= 1 else float(optimize.brentq(gap, inside, 1.0, xtol=1e-12))
    return low, high


def rank_test(difference: npt.ArrayLike, a_won: npt.ArrayLike) -> float:
    """Two-sided p of the Mann-Whitney test of (N,) differences; 1 with one class only.

    Exact for few battles of a side (with ties: 1,999 permutations of the votes), else the normal
    approximation with the correction for ties.
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


def hull(*intervals: Interval | None) -> Interval | None:
    """The smallest interval that holds all of them; None is left out."""
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def prompt_interval(
    samples: FloatArray, value: float, prompts: int, around: Interval | None
) -> Interval | None:
    """Interval of a share from (R,) bootstrap samples over prompts.

    Args:
        samples: the figure in every round.
        value: the figure itself.
        prompts: how many prompts there are; with one there is no interval.
        around: the interval over battles, which this one contains.
    """
    if prompts < 2 or around is None or math.isnan(value):
        return None
    low, high = metrics.stretched_interval(samples, value, prompts)
    return hull(around, None if math.isnan(low) else (max(0.0, low), min(1.0, high)))


def pairwise_error(won: IntArray, lost: IntArray) -> float:
    """Standard error of an AUC within strata where the score has no information.

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


class PairedRounds:
    """Accuracy and AUC of one score in every bootstrap round, without sorting in any.

    With the battles sorted once, the AUC of a round is a dot product of the winners' counts with
    cumulative counts of the losers.

    Args:
        difference: (N,) score of A minus score of B.
        a_won: (N,) whether A got the vote.
        strata: (N,) labels; winners are compared with losers of their own stratum only, each
            comparison counting once. None: all with all.
    """

    def __init__(
        self, difference: FloatArray, a_won: npt.ArrayLike, strata: npt.ArrayLike | None = None
    ) -> None:
        won = np.asarray(a_won, dtype=np.bool_)
        labels = (
            np.zeros(len(won), dtype=np.intp) if strata is None else metrics.cluster_codes(strata)
        )
        self._correct = metrics.correctness(difference, won)
        # One number per battle that sorts by stratum first and by difference within it.
        key = labels * (len(won) + 1) + np.unique(difference, return_inverse=True)[1]
        self._lost = np.flatnonzero(~won)[np.argsort(key[~won], kind="stable")]
        self._won = np.flatnonzero(won)
        lost_keys, lost_labels = key[self._lost], labels[self._lost]
        self._below = np.searchsorted(lost_keys, key[self._won], side="left")
        self._up_to = np.searchsorted(lost_keys, key[self._won], side="right")
        self._start = np.searchsorted(lost_labels, labels[self._won], side="left")
        self._end = np.searchsorted(lost_labels, labels[self._won], side="right")

    def accuracy(self, counts: FloatArray) -> FloatArray:
        """(R,) accuracies of (R, N) counts."""
        return np.asarray((counts @ self._correct) / counts.sum(axis=1))

    def auc(self, counts: FloatArray) -> FloatArray:
        """(R,) AUCs of (R, N) counts or weights; NaN in a round without a comparison."""
        lost = np.zeros((len(counts), len(self._lost) + 1))
        np.cumsum(counts[:, self._lost], axis=1, out=lost[:, 1:])
        won = counts[:, self._won]
        wins = self._summed(won, lost, self._below)
        if not np.array_equal(self._below, self._up_to):
            wins = (wins + self._summed(won, lost, self._up_to)) / 2
        start, end = self._start, self._end
        if np.all(start == 0) and np.all(end == len(self._lost)):
            compared = won.sum(axis=1) * lost[:, -1]
        else:
            before = self._summed(won, lost, start)
            wins, compared = wins - before, self._summed(won, lost, end) - before
        with np.errstate(invalid="ignore"):
            return np.asarray(wins / compared)

    @staticmethod
    def _summed(won: FloatArray, lost: FloatArray, position: IntArray) -> FloatArray:
        """(R,) sum over winners of their count times the losers' count before `position`."""
        return np.asarray(np.einsum("rw,rw->r", won, lost[:, position]))
