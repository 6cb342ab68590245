"""Arena scores of systems: Bradley-Terry strengths from votes, and from any reward.

As Music Arena computes them: logistic regression without a constant on "+1 for A's system, -1 for
B's", L2 with strength 1, a tie as half a win for each side, BOTH_BAD left out; score = 400 *
strength / ln 10, moved so that the systems' mean is 1000. A reward's scores come from the same
battles with the higher-scored side as the winner.

Shape key: N = battles, Y = systems, R = bootstrap rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from apex_reward.arena.battles import Battles
from apex_reward.arena.bootstrap import resample_counts
from apex_reward.arena.intervals import DIRECTION_MIN, NO_INTERVAL, hull
from apex_reward.arena.results import ArenaSettings, BoardRow, Leaderboards, ScoreBoard
from apex_reward.errors import DataError
from apex_reward.metrics import FloatArray, IntArray, percentile_interval, spearman

L2 = 1.0
SCALE = 400.0
CENTRE = 1000.0
_LONGEST_STEP = 2.0  # log-odds a Newton step may move, so that no round overshoots


def leaderboards(
    battles: Battles, names: Sequence[str] = (), *, bootstrap: int = 1000, seed: int = 0
) -> Leaderboards:
    """Arena scores from the votes and from every named score, and how well the orders agree.

    Returns:
        `leaderboard`: rows `system, score, lower, upper, battles`, best first (95% bootstrap over
        battles; where a system fought fewer than `DIRECTION_MIN`, no narrower than the curvature
        of the likelihood says); `scores`: NAME -> its own `leaderboard`, and over the battles that
        have the score `rank_correlation` (Spearman over systems, votes against score) with
        `rank_correlation_ci95`, null below `DIRECTION_MIN` battles.

    Raises:
        DataError: no vote between two named systems.
    """
    usable = np.isin(battles.vote, ("A", "B", "TIE")) & battles.has_systems
    different = battles.system[:, 0] != battles.system[:, 1]
    kept = battles.select(np.flatnonzero(usable & different))
    if len(kept) == 0:
        raise DataError(
            "a leaderboard needs votes for A, B or TIE between two different systems, named in "
            "the columns system_a and system_b; there are none"
        )
    dropped = {
        **{key: count for key, count in battles.dropped.items() if count},
        "BOTH_BAD": int((battles.vote == "BOTH_BAD").sum()),
        "no_system": int((~battles.has_systems).sum()),
        "same_system": int((usable & ~different).sum()),
    }
    vote_board = _Board(kept, _vote_points(kept))
    by_score = {name: _score_board(kept, name, bootstrap, seed) for name in names}
    return Leaderboards(
        n_battles=battles.n_read,
        n_used=len(kept),
        dropped=dropped,
        leaderboard=vote_board.rows(vote_board.bootstrap(bootstrap, seed)),
        scores=by_score,
        notes=tuple(battles.notes),
        settings=ArenaSettings(bootstrap, seed, l2=L2),
    )


def arena_scores(wins: FloatArray, l2: float = L2) -> FloatArray:
    """(..., Y) Arena scores of (..., Y, Y) wins, wins[i, j] being how often i beat j.

    Newton's method on sum of wins[i, j] * log(1 + exp(s_j - s_i)) + l2 / 2 * |s|^2, all leading
    dimensions at once.

    >>> arena_scores(np.array([[0.0, 3.0], [3.0, 0.0]])).tolist()
    [1000.0, 1000.0]
    """
    met = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    strength = np.zeros(wins.shape[:-1])
    for _ in range(100):
        gap = strength[..., :, None] - strength[..., None, :]
        chance = 0.5 * (1 + np.tanh(gap / 2))
        gradient = (met * chance).sum(axis=-1) - won + l2 * strength
        step = np.linalg.solve(_hessian(met, chance, l2), gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=-1, keepdims=True)
        strength = strength - step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max() < 1e-12:
            break
    scores = SCALE * strength / math.log(10)
    return np.asarray(scores - scores.mean(axis=-1, keepdims=True) + CENTRE)


def standard_errors(wins: FloatArray, l2: float = L2) -> FloatArray:
    """(Y,) standard errors of the Arena scores of (Y, Y) wins, from the posterior's curvature.

    One battle between two systems leaves both within some 200 points.

    >>> standard_errors(np.array([[0.0, 1.0], [0.0, 0.0]])).round(1).tolist()
    [102.1, 102.1]
    """
    strength = (arena_scores(wins, l2) - CENTRE) * math.log(10) / SCALE
    chance = 0.5 * (1 + np.tanh((strength[:, None] - strength[None, :]) / 2))
    centre = np.eye(len(wins)) - 1 / len(wins)
    covariance = centre @ np.linalg.inv(_hessian(wins + wins.T, chance, l2)) @ centre
    return np.asarray(SCALE / math.log(10) * np.sqrt(np.diag(covariance)))


def _hessian(met: FloatArray, chance: FloatArray, l2: float) -> FloatArray:
    weight = met * chance * (1 - chance)
    own = l2 + weight.sum(axis=-1)
    return np.asarray(own[..., :, None] * np.eye(met.shape[-1]) - weight)


class _Board:
    """Arena scores of battles whose A side earned (N,) points: 1, 0.5 or 0."""

    def __init__(self, battles: Battles, points: FloatArray) -> None:
        names, codes = np.unique(battles.system.ravel(), return_inverse=True)
        self.names: list[str] = names.tolist()
        self._sides: IntArray = np.asarray(codes.reshape(-1, 2), dtype=np.intp)
        self.battles = np.bincount(self._sides.ravel(), minlength=len(names))
        size = len(names)
        # (N, Y * Y): what each battle adds to the wins of its two systems over each other.
        self._wins = np.zeros((len(points), size * size))
        row = np.arange(len(points))
        self._wins[row, self._sides[:, 0] * size + self._sides[:, 1]] = points
        self._wins[row, self._sides[:, 1] * size + self._sides[:, 0]] = 1 - points

    def scores(self, counts: FloatArray) -> FloatArray:
        """(R, Y) Arena scores when battle n is there counts[r, n] times."""
        size = len(self.names)
        return arena_scores((counts @ self._wins).reshape(len(counts), size, size))

    def point(self) -> FloatArray:
        """(Y,) Arena scores of the battles as they are."""
        return self.scores(np.ones((1, len(self._wins))))[0]

    def bootstrap(self, rounds: int, seed: int) -> FloatArray:
        """(R, Y) Arena scores of resampled battles."""
        chunks = resample_counts(len(self._wins), rounds, seed)
        return np.concatenate([self.scores(counts) for counts in chunks])

    def rows(self, samples: FloatArray) -> tuple[BoardRow, ...]:
        """A row per system, best first, with the interval of (R, Y) resampled scores."""
        point, size = self.point(), len(self.names)
        reach = 1.96 * standard_errors(self._wins.sum(axis=0).reshape(size, size))
        order = sorted(range(size), key=lambda index: (-point[index], self.names[index]))
        rows = []
        for index in order:
            lower, upper = percentile_interval(samples[:, index])
            fought = int(self.battles[index])
            if fought < DIRECTION_MIN:
                around = point[index] - reach[index], point[index] + reach[index]
                lower, upper = hull((lower, upper), around)
            rows.append(
                BoardRow(self.names[index], float(point[index]), float(lower), float(upper), fought)
            )
        return tuple(rows)


def _score_board(kept: Battles, name: str, bootstrap: int, seed: int) -> ScoreBoard:
    difference = kept.difference(name)
    part = kept.select(np.flatnonzero(np.isfinite(difference)))
    if len(part) == 0:
        raise DataError(f"no battle between named systems has the score {name}")
    board = _Board(part, 0.5 + 0.5 * np.sign(part.difference(name)))
    votes = _Board(part, _vote_points(part))
    by_score, by_votes = board.bootstrap(bootstrap, seed), votes.bootstrap(bootstrap, seed)
    samples = [spearman(one, other) for one, other in zip(by_score, by_votes, strict=True)]
    return ScoreBoard(
        n=len(part),
        leaderboard=board.rows(by_score),
        rank_correlation=spearman(board.point(), votes.point()),
        rank_correlation_ci95=(
            NO_INTERVAL if len(part) < DIRECTION_MIN else percentile_interval(samples)
        ),
    )


def _vote_points(battles: Battles) -> FloatArray:
    return np.where(battles.vote == "TIE", 0.5, (battles.vote == "A").astype(np.float64))
