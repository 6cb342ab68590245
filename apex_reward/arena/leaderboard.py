"""Arena scores of systems: Bradley-Terry strengths from votes, and from any score of songs.

The scores are Music Arena's: logistic regression without a constant on "+1 for A's system, -1 for
B's", L2 with strength 1, a tie as half a win for each side, BOTH_BAD left out; score = 400 *
strength / ln 10, shifted so that the systems' mean is 1000. The board of a score of songs has the
higher-scored side of the same battles as the winner.

`lower` and `upper` are a 95% profile likelihood interval of a system's strength relative to the
mean of its component, with a prior so wide (a standard deviation of 10 in log-odds) that it only
keeps bounds finite. Where prompts are named the likelihood is tempered by the design effect: the
variance of a bootstrap over prompts by the variance of independent votes. A system that won all its
battles has no upper bound. With votes on one prompt only there are no bounds.

`component`: 1 for the largest set of systems that met, directly or through others, then 2, 3.
Scores of two components cannot be compared, and each component's mean is 1000.

Shape key: N = battles, Y = systems, R = bootstrap rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, stats

from apex_reward.arena.battles import Battles
from apex_reward.arena.figures import DIRECTION_MIN, Rounds
from apex_reward.errors import DataError
from apex_reward.files.tables import json_ready
from apex_reward.metrics import FloatArray, IntArray, percentile_interval, spearman

L2 = 1.0
WIDE_L2 = 0.01  # a prior with a standard deviation of 10 in log-odds
SCALE = 400.0
CENTRE = 1000.0
_POINTS = SCALE / math.log(10)  # Arena points per log-odds
_LONGEST_STEP = 2.0  # log-odds a Newton step may move, so that no fit overshoots
_HALVINGS = 22


def leaderboards(
    battles: Battles, names: Sequence[str] = (), *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Arena scores from the votes and from every named score, and how well the orders agree.

    Returns:
        `leaderboard`: rows `system, score, lower, upper, battles, component`, best first within a
        component; `scores`: NAME -> its own `leaderboard`, and over the battles that have the
        score `rank_correlation` (Spearman over the systems of the largest component, votes
        against score) with the bootstrap interval `rank_correlation_ci95`, null below 10 battles
        and where no round differs.

    Raises:
        DataError: no vote between two named systems.
    """
    usable = np.isin(battles.vote, ("A", "B", "TIE")) & battles.has_systems
    different = battles.system[:, 0] != battles.system[:, 1]
    kept = battles.select(usable & different).sorted()
    if len(kept) == 0:
        raise DataError(
            "a leaderboard needs votes for A, B or TIE between two different systems, named in "
            "the columns system_a and system_b; there are none"
        )
    rounds = Rounds(bootstrap, seed)
    result = {
        "n_battles": battles.n_read,
        "n_used": len(kept),
        "dropped": {
            **{key: count for key, count in battles.dropped.items() if count},
            "BOTH_BAD": int((battles.vote == "BOTH_BAD").sum()),
            "no_system": int((~battles.has_systems).sum()),
            "same_system": int((usable & ~different).sum()),
        },
        "leaderboard": _Board(kept, _vote_points(kept), rounds).rows(),
        "scores": {name: _score_board(kept, name, rounds) for name in names},
        "notes": list(battles.notes),
        "settings": {"bootstrap": bootstrap, "seed": seed, "l2": L2},
    }
    return dict(json_ready(result))


def arena_scores(wins: FloatArray, l2: float = L2) -> FloatArray:
    """(..., Y) Arena scores of (..., Y, Y) wins, wins[i, j] being how often i beat j.

    >>> arena_scores(np.array([[0.0, 3.0], [3.0, 0.0]])).tolist()
    [1000.0, 1000.0]
    """
    strength = strengths(wins, l2)
    return np.asarray(_POINTS * (strength - strength.mean(axis=-1, keepdims=True)) + CENTRE)


def strengths(
    wins: FloatArray, l2: float, pull: FloatArray | float = 0.0, start: FloatArray | float = 0.0
) -> FloatArray:
    """(..., Y) strengths in log-odds of (..., Y, Y) wins, all leading dimensions at once.

    Newton's method on sum of wins[i, j] * log(1 + exp(s_j - s_i)) + l2 / 2 * |s|^2 - pull . s. No
    library fits many boards in one call, as the bootstrap and the profile likelihood need.

    Args:
        pull: (..., Y) force on each strength, for the profile likelihood.
        start: (..., Y) strengths near the fit.
    """
    shape = np.broadcast_shapes(wins.shape[:-1], np.shape(pull))
    met, won = wins + np.swapaxes(wins, -1, -2), wins.sum(axis=-1)
    strength = np.zeros(shape) + start
    for _ in range(200):
        chance = _chance(strength)
        gradient = (met * chance).sum(axis=-1) - won + l2 * strength - pull
        step = np.linalg.solve(_hessian(met, chance, l2), gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=-1, keepdims=True)
        strength = strength - step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max() < 1e-10:
            break
    return strength


def _chance(strength: FloatArray) -> FloatArray:
    """(..., Y, Y) probability that i beats j."""
    return np.asarray(0.5 * (1 + np.tanh((strength[..., :, None] - strength[..., None, :]) / 2)))


def _hessian(met: FloatArray, chance: FloatArray, l2: float) -> FloatArray:
    """(..., Y, Y) second derivatives of the negative log posterior."""
    weight = met * chance * (1 - chance)
    own = l2 + weight.sum(axis=-1)
    return np.asarray(own[..., :, None] * np.eye(met.shape[-1]) - weight)


def likelihood_drop(wins: FloatArray) -> FloatArray:
    """(Y,) how far the log likelihood falls to the ends of a 95% interval of independent votes.

    1.92 for many battles, and half of Student's t squared for few, with a degree of freedom per
    battle. At most the exact tail of a record without a loss or without a win, -log(0.025), which
    such systems have at any number of battles.
    """
    lost, won = wins.sum(axis=-2), wins.sum(axis=-1)
    longest = -math.log(0.025)
    few = np.minimum(stats.t.ppf(0.975, np.maximum(won + lost, 1)) ** 2 / 2, longest)
    return np.asarray(np.where((won == 0) | (lost == 0), longest, few))


def profile_bounds(wins: FloatArray, drop: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(Y,) lower and (Y,) upper Arena scores where the log likelihood has fallen by `drop`.

    The strengths that make a system's lead over the mean largest at a log likelihood maximise log
    likelihood + force * lead; the force is searched by bisection, for all systems at once.

    Args:
        wins: (Y, Y) wins of systems that met, directly or through others.
        drop: (Y,) fall of the log likelihood, as of `likelihood_drop`.
    """
    size = len(wins)
    lead = np.eye(size) - 1 / size  # row i: the lead of system i over the mean
    best = strengths(wins, WIDE_L2)
    error = np.sqrt(
        np.diag(lead @ np.linalg.inv(_hessian(wins + wins.T, _chance(best), WIDE_L2)) @ lead)
    )
    start = np.log(np.sqrt(2 * drop) / error)

    def log_posterior(strength: FloatArray) -> FloatArray:
        gap = strength[..., :, None] - strength[..., None, :]
        loss = (wins * np.logaddexp(0.0, -gap)).sum(axis=(-1, -2))
        return np.asarray(-loss - WIDE_L2 / 2 * (strength**2).sum(axis=-1))

    bounds = []
    for sign in (-1.0, 1.0):
        low, high, pulled = start - 7.0, start + 7.0, best
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            pulled = strengths(wins, WIDE_L2, sign * np.exp(middle)[:, None] * lead, pulled)
            beyond = log_posterior(best) - log_posterior(pulled) > drop
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        bounds.append(_POINTS * (pulled * lead).sum(axis=1) + CENTRE)
    return bounds[0], bounds[1]


class _Board:
    """Arena scores of battles whose A side earned (N,) points: 1, 0.5 or 0."""

    def __init__(self, battles: Battles, points: FloatArray, rounds: Rounds) -> None:
        names, codes = np.unique(battles.system.ravel(), return_inverse=True)
        self._names, self._sides = names, codes.reshape(-1, 2)
        self._points, self._rounds, self._part = points, rounds, battles
        self._battles = np.bincount(codes.ravel(), minlength=len(names))
        self._wins = self._wins_of(np.ones((1, len(points))))[0]
        self.component = _components(self._wins, self._battles)
        self.point = self._scores(self._wins[None])[0]

    def _wins_of(self, counts: FloatArray) -> FloatArray:
        """(R, Y, Y) wins when battle n is there counts[r, n] times."""
        size = len(self._names)
        a, b = self._sides.T
        made = [
            np.bincount(a * size + b, row * self._points, size * size)
            + np.bincount(b * size + a, row * (1 - self._points), size * size)
            for row in counts
        ]
        return np.array(made).reshape(len(counts), size, size)

    def _scores(self, wins: FloatArray) -> FloatArray:
        """(R, Y) Arena scores of (R, Y, Y) wins, each component with a mean of its own."""
        scores = np.empty(wins.shape[:-1])
        for number in np.unique(self.component):
            at = np.flatnonzero(self.component == number)
            scores[:, at] = arena_scores(wins[:, at[:, None], at])
        return scores

    def resampled(self) -> FloatArray:
        """(R, Y) Arena scores of resampled prompts, or battles where no prompt is named."""
        return self._rounds.samples(lambda drawn: self._scores(self._wins_of(drawn)), self._part)

    def _intervals(self) -> tuple[FloatArray, FloatArray]:
        """(Y,) lower and upper bounds; infinite above systems that won all, NaN with one prompt."""
        lower, upper = np.full((2, len(self._names)), math.nan)
        by_prompt, prompts = self._part.has_prompts, len(np.unique(self._part.clusters))
        if by_prompt and prompts == 1:
            return lower, upper
        drop = likelihood_drop(self._wins)
        if by_prompt:
            variance = self.resampled().var(axis=0)
            drop = np.maximum(drop, stats.t.ppf(0.975, prompts - 1) ** 2 / 2)
        for number in np.unique(self.component):
            at = np.flatnonzero(self.component == number)
            wins = self._wins[at[:, None], at]
            if by_prompt:
                drop[at] *= np.maximum(1.0, variance[at] / _independent_variance(wins))
            lower[at], upper[at] = profile_bounds(wins, drop[at])
        upper[self._wins.sum(axis=0) == 0] = math.inf
        return lower, upper

    def rows(self) -> list[dict[str, Any]]:
        """A row per system, by component and then best first."""
        lower, upper = self._intervals()
        columns = {
            "system": self._names,
            "score": self.point,
            "lower": lower,
            "upper": upper,
            "battles": self._battles,
            "component": self.component,
        }
        order = np.lexsort((self._names, -self.point, self.component))
        rows: list[dict[str, Any]] = pd.DataFrame(columns).iloc[order].to_dict("records")
        return rows


def _components(wins: FloatArray, battles: IntArray) -> IntArray:
    """(Y,) component of every system, from 1 for the one with most systems, then most battles."""
    _, labels = sparse.csgraph.connected_components(sparse.csr_array(wins), directed=False)
    sizes = np.bincount(labels)
    order = sorted(range(len(sizes)), key=lambda n: (-sizes[n], -battles[labels == n].sum(), n))
    return np.asarray(np.argsort(order)[labels] + 1)


def _independent_variance(wins: FloatArray) -> FloatArray:
    """(Y,) variance of the Arena scores of independent votes."""
    met, chance = wins + wins.T, _chance(strengths(wins, L2))
    inverse = np.linalg.inv(_hessian(met, chance, L2))
    lead = np.eye(len(wins)) - 1 / len(wins)
    spread = lead @ inverse @ _hessian(met, chance, 0.0) @ inverse @ lead
    return np.asarray(_POINTS**2 * np.diag(spread))


def _score_board(kept: Battles, name: str, rounds: Rounds) -> dict[str, Any]:
    part = kept.select(np.isfinite(kept.difference(name)))
    if len(part) == 0:
        raise DataError(f"no battle between named systems has the score {name}")
    board = _Board(part, 0.5 + 0.5 * np.sign(part.difference(name)), rounds)
    votes = _Board(part, _vote_points(part), rounds)
    largest = board.component == 1
    pairs = zip(board.resampled()[:, largest], votes.resampled()[:, largest], strict=True)
    interval = percentile_interval([spearman(one, other) for one, other in pairs])
    known = len(part) >= DIRECTION_MIN and not math.isnan(interval[0])
    return {
        "n": len(part),
        "leaderboard": board.rows(),
        "rank_correlation": spearman(board.point[largest], votes.point[largest]),
        "rank_correlation_ci95": interval if known else None,
    }


def _vote_points(battles: Battles) -> FloatArray:
    return np.where(battles.vote == "TIE", 0.5, (battles.vote == "A").astype(np.float64))
