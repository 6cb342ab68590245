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

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apex_reward import metrics
from apex_reward.arena import intervals
from apex_reward.arena.battles import Battles, BoolArray
from apex_reward.errors import DataError
from apex_reward.metrics import FloatArray

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

    def samples(
        self, statistic: Callable[[FloatArray], npt.ArrayLike], part: Battles
    ) -> FloatArray:
        """(R, ...) values of a statistic over resampled prompts; without prompts, battles."""
        return metrics.bootstrap(
            statistic, len(part), rounds=self.bootstrap, seed=self.seed, clusters=part.clusters
        )


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
    won, paired = part.a_won, intervals.PairedRounds(difference, part.a_won)
    correct = metrics.correctness(difference, won)
    right, area = metrics.accuracy(difference, won), metrics.auc(difference, won)
    untied = int((correct != 0.5).sum())
    found: Figures = {
        "n": len(part),
        "accuracy": right,
        "accuracy_ci95": intervals.accuracy_interval(difference, won),
        "auc": area,
        "auc_ci95": intervals.auc_interval(area, int(won.sum()), int((~won).sum())),
        "p_value": metrics.binomial_p_value(int((correct == 1).sum()), untied),
    }
    if claims:
        p_value = intervals.rank_test(difference, won)
        found |= {"direction": "undetermined", "direction_p": p_value}
    if part.has_prompts:
        prompts = len(np.unique(part.clusters))
        for name, statistic in (("accuracy", paired.accuracy), ("auc", paired.auc)):
            found[f"{name}_ci95_by_prompt"] = intervals.prompt_interval(
                rounds.samples(statistic, part), found[name], prompts, found[f"{name}_ci95"]
            )
    return found


def claim_directions(scores: Iterable[Mapping[str, Any]]) -> None:
    """Adjust every `direction_p` over all scores and their main strata, and set the directions."""
    entries = [strata[name] for strata in scores for name in CLAIMS if name in strata]
    adjusted = metrics.holm([entry["direction_p"] for entry in entries])
    for entry, p_value in zip(entries, adjusted.tolist(), strict=True):
        entry["direction_p"] = p_value
        low, high = entry.get("auc_ci95_by_prompt", entry["auc_ci95"]) or (0.0, 1.0)
        if p_value < LEVEL and entry["n"] >= DIRECTION_MIN and not low <= 0.5 <= high:
            entry["direction"] = "agrees" if low > 0.5 else "opposes"


def stratum_figures(decided: Battles, difference: FloatArray, rounds: Rounds) -> Figures:
    """Figures of (N,) differences of decided battles, `overall` and in every stratum."""
    strata = {"overall": np.full(len(decided), True)}
    strata |= {"instrumental": decided.instrumental == 1, "vocal": decided.instrumental == 0}
    for label, keys in (("month", decided.month), ("system_pair", decided.pair)):
        strata |= {f"{label}:{key}": keys == key for key in np.unique(keys[keys != ""])}
    return {
        name: figures(difference[rows], decided.select(rows), rounds, claims=name in CLAIMS)
        for name, rows in strata.items()
        if rows.any()
    }


def mcnemar(first: FloatArray, second: FloatArray, a_won: BoolArray) -> dict[str, Any]:
    """Exact McNemar test of two (N,) differences on the battles that have both (McNemar 1947).

    A battle counts for the score that is more right on it; a tied score is half right.
    """
    both = np.isfinite(first) & np.isfinite(second)
    right = [metrics.correctness(score[both], a_won[both]) for score in (first, second)]
    more, less = int((right[0] > right[1]).sum()), int((right[0] < right[1]).sum())
    p_value = metrics.binomial_p_value(more, more + less)
    return {"n": int(both.sum()), "only_first": more, "only_second": less, "p_value": p_value}


def adjusted(tests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tests whose `p_value` is adjusted by Holm's method over all of them."""
    p_values = iter(metrics.holm([test["p_value"] for test in tests.values()]).tolist())
    return {name: {**test, "p_value": next(p_values)} for name, test in tests.items()}
