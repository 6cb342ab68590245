"""Bootstrap of accuracy and AUC over battles or prompt clusters, all rounds of a chunk at once.

Round r draws battles (or whole clusters) with replacement; only how often each battle was drawn
matters. With the battles sorted once, the AUC of a round is a dot product of the winners' counts
with cumulative counts of the losers, so no round sorts anything. The draws are those of
`metrics.bootstrap_interval` with the same seed: both give the same numbers.

Shape key: N = battles, R = rounds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from apex_reward.metrics import FloatArray, IntArray, cluster_codes, correctness

_CHUNK_CELLS = 200_000  # counts of a chunk: 1.6 MB, so that its sums run in the processor's cache


def resample_counts(
    n: int, rounds: int, seed: int, clusters: npt.ArrayLike | None = None
) -> Iterator[FloatArray]:
    """Chunks (rows, n) of how often each of n battles was drawn, `rounds` rows in all."""
    rng = np.random.default_rng(seed)
    codes = None if clusters is None else cluster_codes(clusters)
    units = n if codes is None else int(codes.max()) + 1
    step = max(1, _CHUNK_CELLS // max(n, 1))
    for start in range(0, rounds, step):
        rows = min(step, rounds - start)
        # 32-bit draws are the same numbers as 64-bit ones below 2^31, in a quarter of the time.
        drawn = rng.integers(0, units, size=(rows, units), dtype=np.int32)
        cells = drawn + (np.arange(rows, dtype=np.intp) * units)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * units).reshape(rows, units)
        yield np.asarray(counts if codes is None else counts[:, codes], dtype=np.float64)


class PairedRounds:
    """Accuracy and AUC of every round for one score.

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
        labels = np.zeros(len(won), dtype=np.intp) if strata is None else cluster_codes(strata)
        self._correct = correctness(difference, won)
        # One number per battle that sorts by stratum first and by difference within it.
        rank = np.unique(difference, return_inverse=True)[1]
        key = labels * (len(won) + 1) + rank
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
        """(R,) AUCs of (R, N) counts; NaN in a round without a comparison."""
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


def bootstrap_rounds(
    difference: FloatArray,
    a_won: npt.ArrayLike,
    *,
    rounds: int = 1000,
    seed: int = 0,
    clusters: npt.ArrayLike | None = None,
) -> tuple[FloatArray, FloatArray]:
    """(R,) accuracies and (R,) AUCs of the resampled battles."""
    paired = PairedRounds(difference, a_won)
    accuracies, aucs = [np.empty(0)], [np.empty(0)]
    for counts in resample_counts(len(difference), rounds, seed, clusters):
        accuracies.append(paired.accuracy(counts))
        aucs.append(paired.auc(counts))
    return np.concatenate(accuracies), np.concatenate(aucs)
