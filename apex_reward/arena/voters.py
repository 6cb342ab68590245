"""Do people agree with each other, and with themselves?

Votes of `apex-reward listen` name their `comparison`, whether its sides were `swapped`, the `voter`
and whether the vote is a `repeat`. Votes on one comparison are compared with the same song first.

- `equal`: share of pairs of votes on one comparison that are equal, the mean over comparisons.
- `alpha`: Krippendorff's alpha for nominal data (Krippendorff 2011, "Computing Krippendorff's
  alpha-reliability"), for any number of votes per comparison, categories first, second, tie, both
  bad. 0 is chance, 1 is perfect.
- intervals: comparisons resampled; None where no resample differs.

A voter counts once per comparison in `between`: the first vote there.

Shape key: N = comparisons, K = categories, R = rounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from apex_reward.arena.battles import VOTES, Row, truth, uuid_of, vote_of
from apex_reward.files.tables import json_ready
from apex_reward.metrics import FloatArray, percentile_interval
from apex_reward.metrics import bootstrap as bootstrapped


def voter_agreement(rows: Sequence[Row], *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """What `metrics.json` holds under `voters`; empty where no vote names voter and comparison.

    Returns:
        `voters`: name -> votes, repeats; `between`: figures of different voters' first votes on
        one comparison; `repeats`: of a voter's own votes on one. Figures are `comparisons`,
        `votes`, `equal`, `equal_ci95`, `alpha`, `alpha_ci95`, None where there is nothing.
    """
    # comparison -> voter -> categories of the votes, the first vote first
    cast: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"votes": 0, "repeats": 0})
    for row in sorted(rows, key=_order):
        vote, voter = vote_of(row.get("preference")), str(row.get("voter") or "")
        if not (vote and voter and row.get("comparison")):
            continue
        if truth(row.get("swapped")) == 1 and vote in "AB":
            vote = "BA"["AB".index(vote)]
        cast[str(row["comparison"])][voter].append(VOTES.index(vote))
        counts[voter]["votes"] += 1
        counts[voter]["repeats"] += truth(row.get("repeat")) == 1
    if not cast:
        return {}
    comparisons = [cast[name] for name in sorted(cast)]
    between = [[votes[0] for votes in voters.values()] for voters in comparisons]
    own = [votes for voters in comparisons for _, votes in sorted(voters.items())]
    return {
        "voters": {name: counts[name] for name in sorted(counts)},
        "between": _figures(between, bootstrap, seed),
        "repeats": _figures(own, bootstrap, seed),
    }


def _order(row: Row) -> tuple[bool, str, str, str]:
    """First votes before repeats, then by date."""
    first = truth(row.get("repeat")) != 1
    return not first, str(row.get("date") or ""), uuid_of(row), str(row.get("preference"))


def equal_and_alpha(counts: FloatArray, drawn: FloatArray | None = None) -> FloatArray:
    """(R, 2) shares of equal pairs of votes, and alphas, of (N, K) votes per category.

    Each of the N comparisons has at least two votes and counts (R, N) times, by default once.
    Alpha is NaN where all votes are alike.

    >>> equal_and_alpha(np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])).round(3)
    array([[0.75 , 0.533]])
    """
    weight = np.ones((1, len(counts))) if drawn is None else drawn
    votes = counts.sum(axis=1)
    alike = (counts * (counts - 1)).sum(axis=1) / (votes - 1)
    equal = weight @ (alike / votes) / weight.sum(axis=1)
    total, category = weight @ votes, weight @ counts
    differ = 1 - weight @ alike / total
    chance = 1 - (category * (category - 1)).sum(axis=1) / (total * (total - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([equal, np.where(chance > 0, 1 - differ / chance, np.nan)], axis=1)


def _figures(votes: Iterable[Sequence[int]], rounds: int, seed: int) -> dict[str, Any]:
    """Of the comparisons with at least two votes."""
    several = [found for found in votes if len(found) > 1]
    keys = ("equal", "equal_ci95", "alpha", "alpha_ci95")
    result: dict[str, Any] = {"comparisons": len(several), "votes": sum(map(len, several))}
    result |= dict.fromkeys(keys)
    if several:
        counts = np.array([np.bincount(one, minlength=len(VOTES)) for one in several], np.float64)
        samples = bootstrapped(
            lambda drawn: equal_and_alpha(counts, drawn), len(counts), rounds=rounds, seed=seed
        )
        for column, name in enumerate(("equal", "alpha")):
            low, high = percentile_interval(samples[:, column])
            result[name] = json_ready(float(equal_and_alpha(counts)[0, column]))
            result[f"{name}_ci95"] = None if np.isnan(low) else [low, high]
    return result


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
    if part["equal_ci95"]:
        text += " (95% interval {:.0%} to {:.0%})".format(*part["equal_ci95"])
    if part["alpha"] is None:
        return f"{text}; Krippendorff's alpha is not defined where all votes are alike."
    around = " ({:.2f} to {:.2f})".format(*part["alpha_ci95"]) if part["alpha_ci95"] else ""
    return f"{text}; Krippendorff's alpha {part['alpha']:.2f}{around}."
