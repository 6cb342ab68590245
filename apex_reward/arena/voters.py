"""Do people agree with each other, and with themselves?

Votes of `apex-reward listen` name their `comparison`, whether its sides were `swapped`, the `voter`
and whether the vote is a `repeat`. Votes on one comparison are compared with the same song first.

- `equal`: share of pairs of votes on one comparison that are equal, the mean over comparisons.
- `alpha`: Krippendorff's alpha for nominal data (Krippendorff 2011, "Computing Krippendorff's
  alpha-reliability"), for any number of votes per comparison, categories first, second, tie, both
  bad. 0 is chance, 1 is perfect.

A voter counts once per comparison in `between`: the first vote there.

Shape key: N = comparisons, K = categories.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from apex_reward.arena.battles import VOTES, Row, truth, uuid_of, vote_of
from apex_reward.files.tables import json_ready
from apex_reward.metrics import FloatArray


def voter_agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """What `metrics.json` holds under `voters`; empty where no vote names voter and comparison.

    Returns:
        `between`: figures of different voters' first votes on one comparison; `repeats`: of a
        voter's own votes on one. Figures are `comparisons`, `votes`, `equal`, `alpha`, None where
        there is nothing.
    """
    # comparison -> voter -> categories of the votes, the first vote first
    cast: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=_order):
        vote, voter = vote_of(row.get("preference")), str(row.get("voter") or "")
        if not (vote and voter and row.get("comparison")):
            continue
        if truth(row.get("swapped")) == 1 and vote in "AB":
            vote = "BA"["AB".index(vote)]
        cast[str(row["comparison"])][voter].append(VOTES.index(vote))
    if not cast:
        return {}
    comparisons = [cast[name] for name in sorted(cast)]
    between = [[votes[0] for votes in voters.values()] for voters in comparisons]
    own = [votes for voters in comparisons for _, votes in sorted(voters.items())]
    return {"between": _figures(between), "repeats": _figures(own)}


def _order(row: Row) -> tuple[bool, str, str, str]:
    """First votes before repeats, then by date."""
    first = truth(row.get("repeat")) != 1
    return not first, str(row.get("date") or ""), uuid_of(row), str(row.get("preference"))


def equal_and_alpha(counts: FloatArray) -> tuple[float, float]:
    """The share of equal pairs of votes, and alpha, of (N, K) votes per category.

    Each of the N comparisons has at least two votes. Alpha is NaN where all votes are alike.

    >>> equal, alpha = equal_and_alpha(np.array([[2.0, 0], [0, 2], [1, 1], [2, 0]]))
    >>> equal, round(alpha, 3)
    (0.75, 0.533)
    """
    votes, category = counts.sum(axis=1), counts.sum(axis=0)
    alike = (counts * (counts - 1)).sum(axis=1) / (votes - 1)
    total = votes.sum()
    chance = 1 - (category * (category - 1)).sum() / (total * (total - 1))
    alpha = 1 - (1 - alike.sum() / total) / chance if chance > 0 else math.nan
    return float((alike / votes).mean()), float(alpha)


def _figures(votes: Iterable[Sequence[int]]) -> dict[str, Any]:
    """Of the comparisons with at least two votes."""
    several = [found for found in votes if len(found) > 1]
    figures = {"comparisons": len(several), "votes": sum(map(len, several))}
    if not several:
        return figures | {"equal": None, "alpha": None}
    counts = np.array([np.bincount(one, minlength=len(VOTES)) for one in several], np.float64)
    equal, alpha = equal_and_alpha(counts)
    return figures | {"equal": equal, "alpha": json_ready(alpha)}


def voter_words(found: Mapping[str, Any]) -> list[str]:
    """A sentence on agreement between voters, and one on repeats."""
    between = "Voters agree with each other on", "No two voters voted on the same comparison."
    repeats = "Voters answer repeats alike on", "No voter voted twice on a comparison."
    kinds = {"between": between, "repeats": repeats} if found else {}
    return [_sentence(found[kind], *words) for kind, words in kinds.items()]


def _sentence(part: Mapping[str, Any], start: str, nothing: str) -> str:
    if not part["comparisons"]:
        return nothing
    text = f"{start} {part['equal']:.0%} of {part['comparisons']} comparisons"
    if part["alpha"] is None:
        return f"{text}; Krippendorff's alpha is not defined where all votes are alike."
    return f"{text}; Krippendorff's alpha {part['alpha']:.2f}."
