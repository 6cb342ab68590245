"""Do people agree with each other, and with themselves?

Votes of `apex-reward listen` name their `comparison`, whether its sides were `swapped`, the `voter`
and whether it is a `repeat`. Votes on one comparison are turned the same way round and compared.

- `equal`: share of pairs of votes on one comparison that are equal, the mean over comparisons.
- `kappa`: Fleiss' kappa (1971) for any number of votes per comparison, categories first, second,
  tie, both bad. With two votes each it is Scott's pi. 0 is chance, 1 is perfect.
- intervals: comparisons resampled; None below two comparisons.

Shape key: N = comparisons, K = categories, R = rounds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apex_reward.arena.bootstrap import resample_counts
from apex_reward.arena.cells import VOTES, truth, vote_of
from apex_reward.metrics import FloatArray, percentile_interval
from apex_reward.report.document import Block, Grid, Heading, Words

Row = Mapping[str, Any]
Ballot = tuple[str, bool, int]  # voter, repeat, category


def voter_agreement(rows: Sequence[Row], *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """What `metrics.json` holds under `voters`; empty where no vote names voter and comparison.

    Returns:
        `voters`: name -> votes, repeats; `between`: figures of different voters' first votes on
        one comparison; `repeats`: of a voter's own two votes on one. Figures are `comparisons`,
        `votes`, `equal`, `equal_ci95`, `kappa`, `kappa_ci95`, None where there is nothing.
    """
    ballots: dict[str, list[Ballot]] = defaultdict(list)
    for row in rows:
        vote = vote_of(row.get("preference"))
        if vote and row.get("comparison") and row.get("voter"):
            turned = truth(row.get("swapped")) == 1 and vote in "AB"
            vote = "BA"["AB".index(vote)] if turned else vote
            repeat = truth(row.get("repeat")) == 1
            ballots[str(row["comparison"])].append((str(row["voter"]), repeat, VOTES.index(vote)))
    if not ballots:
        return {}
    cast = [ballot for found in ballots.values() for ballot in found]
    names = sorted({voter for voter, _, _ in cast})
    between = [[vote for _, repeat, vote in found if not repeat] for found in ballots.values()]
    own = [
        [vote for voter, _, vote in found if voter == name]
        for name in names
        for found in ballots.values()
    ]
    return {
        "voters": {
            name: {
                "votes": sum(voter == name for voter, _, _ in cast),
                "repeats": sum(voter == name and repeat for voter, repeat, _ in cast),
            }
            for name in names
        },
        "between": _figures(between, bootstrap, seed),
        "repeats": _figures(own, bootstrap, seed),
    }


def equal_and_kappa(counts: FloatArray) -> tuple[float, float]:
    """Share of equal pairs of votes, and Fleiss' kappa, of (N, K) votes per category.

    Each of the N comparisons has at least two votes. Kappa is NaN where all votes are alike.

    >>> equal_and_kappa(np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]))
    (0.75, 0.4666666666666667)
    """
    equal, kappa = _weighted(counts, np.ones((1, len(counts))))
    return float(equal[0]), float(kappa[0])


def _weighted(counts: FloatArray, drawn: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(R,) shares and kappas of (N, K) votes, each comparison counted (R, N) times."""
    votes = counts.sum(axis=1)
    alike = ((counts**2).sum(axis=1) - votes) / (votes * (votes - 1))
    equal = drawn @ alike / drawn.sum(axis=1)
    share = (drawn @ counts) / (drawn @ votes)[:, None]
    chance = (share**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return equal, np.where(chance < 1, (equal - chance) / (1 - chance), math.nan)


def _figures(votes: Sequence[Sequence[int]], bootstrap: int, seed: int) -> dict[str, Any]:
    """Of the comparisons that got at least two votes."""
    several = [found for found in votes if len(found) > 1]
    counts = np.array([np.bincount(found, minlength=len(VOTES)) for found in several], np.float64)
    result: dict[str, Any] = {"comparisons": len(several), "votes": sum(map(len, several))}
    if not several:
        return result | dict.fromkeys(("equal", "equal_ci95", "kappa", "kappa_ci95"))
    equal, kappa = equal_and_kappa(counts)
    draws = [_weighted(counts, drawn) for drawn in resample_counts(len(counts), bootstrap, seed)]
    around = [np.concatenate(values) for values in zip(*draws, strict=True)]
    return result | {
        "equal": equal,
        "equal_ci95": _interval(around[0]),
        "kappa": None if math.isnan(kappa) else kappa,
        "kappa_ci95": _interval(around[1][~np.isnan(around[1])]),
    }


def _interval(values: FloatArray) -> tuple[float, float] | None:
    return percentile_interval(values) if len(np.unique(values)) > 1 else None


def voter_words(found: Mapping[str, Any]) -> list[str]:
    """A sentence on agreement between voters, and one on repeats."""
    if not found:
        return []
    return [
        _sentence(
            found["between"], "Voters agree with each other on", "No two voters were asked alike."
        ),
        _sentence(found["repeats"], "Voters answer repeats alike on", "No voter was asked twice."),
    ]


def _sentence(part: Mapping[str, Any], start: str, nothing: str) -> str:
    if not part["comparisons"]:
        return nothing
    text = f"{start} {part['equal']:.0%} of {part['comparisons']} comparisons"
    if part["equal_ci95"]:
        text += " (95% interval {:.0%} to {:.0%})".format(*part["equal_ci95"])
    if part["kappa"] is None:
        return f"{text}; kappa is not defined where all votes are alike."
    text += f"; kappa {part['kappa']:.2f}"
    if part["kappa_ci95"]:
        text += " ({:.2f} to {:.2f})".format(*part["kappa_ci95"])
    return f"{text}."


def voter_blocks(found: Mapping[str, Any]) -> list[Block]:
    """The report's section on voters; nothing without them."""
    if not found:
        return []
    rows = [[name, part["votes"], part["repeats"]] for name, part in found["voters"].items()]
    return [
        Heading("Voters", "No reward can agree with people more than they do with each other."),
        *(Words(text) for text in voter_words(found)),
        Grid(("voter", "votes", "of them repeats"), rows, "Votes of each voter"),
    ]
