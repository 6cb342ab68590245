"""Features of a battle for the paper's classifiers, and antisymmetric ones.

Ten scores: the seven heads and the three combinations (the mean of the two popularity heads, of
the five aesthetic ones, of all seven; as they are, on their own scales).

Shape key: N = battles, S = scores (10, or 3 without aesthetics).
"""

from __future__ import annotations

import numpy as np

from apex_reward.arena.battles import Battles
from apex_reward.errors import DataError, listed
from apex_reward.metrics import FloatArray
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS, POPULARITY_HEADS

_TINY = 1e-9  # the paper's guard against a division by zero


def check_heads(battles: Battles) -> None:
    """Raise DataError unless every head has its two columns."""
    absent = [head for head in HEADS if head not in battles.scores]
    if absent:
        raise DataError(
            "the classifiers need the seven heads of both sides as columns NAME_a, NAME_b; "
            f"absent: {listed(absent)}. `apex-reward arena score` writes them"
        )


def score_sides(battles: Battles, *, aesthetics: bool) -> FloatArray:
    """(N, S, 2) scores of A and of B, the combinations last."""
    heads = HEADS if aesthetics else POPULARITY_HEADS
    sides = [battles.scores[head] for head in heads]
    groups = [POPULARITY_HEADS, AESTHETIC_HEADS, HEADS] if aesthetics else [POPULARITY_HEADS]
    sides += [np.mean([battles.scores[head] for head in group], axis=0) for group in groups]
    return np.stack(sides, axis=1)


def published_features(battles: Battles, *, aesthetics: bool = True) -> FloatArray:
    """(N, 3S + 1), the paper's: 31 columns, or 10 without aesthetics.

    Differences, ratios a / (b + 1e-9), instrumental flag (0 where unknown), differences times the
    flag.
    """
    sides = score_sides(battles, aesthetics=aesthetics)
    flag = (battles.instrumental == 1).astype(np.float64)[:, None]
    difference = sides[..., 0] - sides[..., 1]
    ratio = sides[..., 0] / (sides[..., 1] + _TINY)
    return np.hstack([difference, ratio, flag, difference * flag])


def antisymmetric_features(battles: Battles, *, aesthetics: bool = True) -> FloatArray:
    """(N, 3S) that change sign when A and B are swapped.

    Differences, differences over the sum of magnitudes, differences times the instrumental flag.
    """
    sides = score_sides(battles, aesthetics=aesthetics)
    flag = (battles.instrumental == 1).astype(np.float64)[:, None]
    difference = sides[..., 0] - sides[..., 1]
    relative = difference / (np.abs(sides).sum(axis=-1) + _TINY)
    return np.hstack([difference, relative, difference * flag])
