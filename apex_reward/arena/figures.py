"""Figures of one score on one set of battles, and the rule for claims.

Figures are a mapping:

- `n`, `accuracy` (a tied score is half right), `accuracy_ci95`, `auc`, `auc_ci95`.
- `p_value`: two-sided exact binomial test of the accuracy against one half, without tied scores,
  not adjusted.
- `accuracy_ci95_by_prompt`, `auc_ci95_by_prompt` where prompts are named: whole prompts resampled.
- `direction`, `direction_p` in the strata `overall`, `instrumental` and `vocal`. `direction_p` is
  the rank test's p, adjusted by Holm's method over all scores and these strata. `direction` is
  `agrees` or `opposes` where `direction_p` is below 0.05, the AUC interval (by prompt where prompts
  are named) leaves out 0.5, and there are at least 10 battles; else `undetermined`.

A figure that the data does not define is NaN here and null in `metrics.json`.

Shape key: N = battles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from apex_reward.arena.battles import Battles, BoolArray
from apex_reward.arena.intervals import (
    PairedRounds,
    accuracy_interval,
    auc_interval,
    excludes_half,
    prompt_interval,
    rank_test,
)
from apex_reward.errors import DataError
from apex_reward.metrics import (
    FloatArray,
    IntArray,
    accuracy,
    auc,
    binomial_p_value,
    bootstrap,
    correctness,
    holm,
)

Figures = dict[str, Any]
CLAIMS = ("overall", "instrumental", "vocal")
"""Strata whose figures have a `direction`."""
LEVEL = 0.05
DIRECTION_MIN = 10
"""Fewest battles for a direction."""


class Rounds(NamedTuple):
    """How figures are resampled: bootstrap rounds, and the seed of draws and folds."""

    bootstrap: int = 1000
    seed: int = 0


def decided_battles(battles: Battles) -> tuple[Battles, dict[str, int], list[str]]:
    """The sorted battles with a vote for A or B, the counts of all others, and notes on the data.

    Raises DataError where no battle was decided.
    """
    decided = battles.select(battles.decided).sorted()
    dropped = dict(battles.dropped)
    for vote in ("TIE", "BOTH_BAD"):
        dropped[vote] = dropped.get(vote, 0) + int((battles.vote == vote).sum())
    if len(decided) == 0:
        raise DataError(f"none of the {battles.n_read} battles was decided for A or B: {dropped}")
    notes = list(battles.notes)
    if decided.a_won.all() or not decided.a_won.any():
        winner = "A" if decided.a_won[0] else "B"
        notes.append(f"every decided battle went to {winner}: the AUC is not defined")
    return decided, dropped, notes


def figures(
    difference: FloatArray, part: Battles, rounds: Rounds, *, claims: bool = False
) -> Figures:
    """Figures of (N,) score differences of decided battles; the direction is not yet claimed."""
    won = part.a_won
    n_won, correct = int(won.sum()), correctness(difference, won)
    right, area = accuracy(difference, won), auc(difference, won)
    found: Figures = {
        "n": len(part),
        "accuracy": right,
        "accuracy_ci95": accuracy_interval(difference, won),
        "auc": area,
        "auc_ci95": auc_interval(area, n_won, len(won) - n_won),
        "p_value": binomial_p_value(int((correct == 1).sum()), int((correct != 0.5).sum())),
    }
    if claims:
        found |= {"direction": "undetermined", "direction_p": rank_test(difference, won)}
    if part.has_prompts:
        paired = PairedRounds(difference, won)
        samples = bootstrap(
            lambda counts: np.stack([paired.accuracy(counts), paired.auc(counts)], axis=1),
            len(part),
            rounds=rounds.bootstrap,
            seed=rounds.seed,
            clusters=part.clusters,
        )
        prompts = len(np.unique(part.clusters))
        for column, (name, value) in enumerate((("accuracy", right), ("auc", area))):
            found[f"{name}_ci95_by_prompt"] = prompt_interval(
                samples[:, column], value, prompts, found[f"{name}_ci95"]
            )
    return found


def claim_directions(scores: Iterable[Mapping[str, Any]]) -> None:
    """Adjust every `direction_p` over all scores and their main strata, and set the directions."""
    entries = [strata[name] for strata in scores for name in CLAIMS if name in strata]
    adjusted = holm([entry["direction_p"] for entry in entries])
    for entry, p_value in zip(entries, adjusted.tolist(), strict=True):
        entry["direction_p"] = p_value
        interval = entry.get("auc_ci95_by_prompt", entry["auc_ci95"])
        if p_value < LEVEL and entry["n"] >= DIRECTION_MIN and excludes_half(interval):
            entry["direction"] = "agrees" if interval[0] > 0.5 else "opposes"


def stratum_figures(decided: Battles, difference: FloatArray, rounds: Rounds) -> Figures:
    """Figures of (N,) differences of decided battles, `overall` and in every stratum."""
    return {
        stratum: figures(difference[rows], decided.select(rows), rounds, claims=stratum in CLAIMS)
        for stratum, rows in strata(decided)
    }


def strata(battles: Battles) -> Iterator[tuple[str, IntArray]]:
    """Names and row numbers of the strata that hold any battle, `overall` first."""
    yield "overall", np.arange(len(battles))
    for name, value in (("instrumental", 1.0), ("vocal", 0.0)):
        rows = np.flatnonzero(battles.instrumental == value)
        if len(rows):
            yield name, rows
    for label, keys in (("month", battles.month), ("system_pair", battles.pair)):
        for key in np.unique(keys[keys != ""]):
            yield f"{label}:{key}", np.flatnonzero(keys == key)


def mcnemar(first: FloatArray, second: FloatArray, a_won: BoolArray) -> dict[str, Any]:
    """Exact McNemar test of two (N,) differences on the battles that have both (McNemar 1947).

    A battle counts for the score that is more right on it; a tied score is half right.
    """
    both = np.isfinite(first) & np.isfinite(second)
    won = a_won[both]
    gain = correctness(first[both], won) - correctness(second[both], won)
    only_first, only_second = int((gain > 0).sum()), int((gain < 0).sum())
    return {
        "n": len(won),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": binomial_p_value(only_first, only_first + only_second),
    }


def adjusted(tests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tests whose `p_value` is adjusted by Holm's method over all of them."""
    p_values = holm([test["p_value"] for test in tests.values()]).tolist()
    return {
        name: {**test, "p_value": p_value}
        for (name, test), p_value in zip(tests.items(), p_values, strict=True)
    }
