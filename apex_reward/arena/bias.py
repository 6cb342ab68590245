"""What else a score measures: plain rulers of a song, and groups of battles.

Rulers are scores whose names begin with `rulers.` (length, loudness, brightness, ...). They have
no better direction. With rulers `metrics.json` has:

- `rulers`: ruler -> figures in every stratum, as for a score; Holm's method over the rulers.
- `best_ruler`: the ruler whose AUC is farthest from 0.5.
- `versus_best_ruler`: score -> McNemar test of the score against the best ruler, adjusted over the
  scores. Which ruler and which direction of it is chosen on the other folds.
- `scores.NAME.after_rulers`: `auc` and `auc_ci95` of what the score knows beyond the rulers, held
  out by prompt. In every fold a logistic regression predicts the votes from the rulers, and a
  linear regression predicts the score from them. The AUC is that of the score's residual. Each
  battle counts with the probability of the vote that it did not get, so that battles that A won
  and battles that B won have the same rulers (overlap weights: Li, Morgan and Zaslavsky 2018).
  0.5: the rulers know all that the score knows of the votes.

`by`: COLUMN -> `groups` (value -> figures), `p_value` of a test that the accuracy is equal in all
groups with at least 10 battles on at least two prompts (chi-square, by prompt divided by the design
effect, against an F distribution with a degree of freedom per prompt less one per group; Rao and
Scott 1984), adjusted by Holm's method over columns and scores, and `gap`, the largest difference
in accuracy of groups with at least 10 battles. They are of the first score, `score`; `others` has
the other scores.

Shape key: N = battles, P = rulers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit

from apex_reward.arena import figures as f
from apex_reward.arena import heldout
from apex_reward.arena.battles import RULERS, Battles
from apex_reward.arena.figures import DIRECTION_MIN, Figures, Rounds
from apex_reward.arena.intervals import PairedRounds, auc_interval, prompt_interval
from apex_reward.metrics import FloatArray, auc, correctness, holm

RULER_L2 = 1.0


def ruler_part(
    decided: Battles, rulers: Sequence[str], scores: dict[str, Figures], rounds: Rounds
) -> dict[str, Any]:
    """The keys of rulers; adds `after_rulers` to every score. Nothing without rulers.

    Args:
        decided: sorted battles with a vote for A or B.
        rulers: names of rulers that any battle has.
        scores: the scores' figures.
    """
    if not rulers:
        return {}
    # A ruler that is missing on one side does not tell the sides apart.
    features = np.nan_to_num(np.stack([decided.difference(name) for name in rulers], axis=1))
    found = {}
    for name in rulers:
        part = decided.select(~np.isnan(decided.difference(name)))
        found[name.removeprefix(RULERS)] = f.stratum_figures(part, part.difference(name), rounds)
    f.claim_directions(found.values())
    leads = {name: abs(strata["overall"]["auc"] - 0.5) for name, strata in found.items()}
    known = sorted(name for name, lead in leads.items() if not math.isnan(lead))
    chosen = _held_out_best(features, decided, rounds.seed)
    for name, strata in scores.items():
        strata["after_rulers"] = after_rulers(decided, decided.difference(name), features, rounds)
    tests = {name: f.mcnemar(decided.difference(name), chosen, decided.a_won) for name in scores}
    return {
        "rulers": found,
        "best_ruler": max(known, key=leads.__getitem__, default=None),
        "versus_best_ruler": f.adjusted(tests),
    }


def _held_out_best(features: FloatArray, decided: Battles, seed: int) -> FloatArray:
    """(N,) difference of the ruler that is best on the other folds, in its better direction."""
    chosen = np.full(len(decided), math.nan)
    if len(np.unique(decided.clusters)) < 2:
        return chosen
    for train, test in heldout.group_folds(decided.clusters, heldout.FOLDS, seed):
        lead = np.array([auc(column, decided.a_won[train]) - 0.5 for column in features[train].T])
        if np.isfinite(lead).all():
            place = int(np.argmax(np.abs(lead)))
            chosen[test] = np.sign(lead[place]) * features[test, place]
    return chosen


def after_rulers(
    decided: Battles, difference: FloatArray, features: FloatArray, rounds: Rounds
) -> dict[str, Any]:
    """AUC, with interval, of (N,) differences once (N, P) differences of rulers are taken out."""
    known = np.isfinite(difference)
    part, score, measures = decided.select(known), difference[known], features[known]
    prompts, won = len(np.unique(part.clusters)), part.a_won
    if prompts < 2:
        return {"auc": math.nan, "auc_ci95": None}
    rest, weight = np.empty(len(part)), np.empty(len(part))
    for train, test in heldout.group_folds(part.clusters, heldout.FOLDS, rounds.seed):
        scaled = measures / heldout.root_mean_square(measures[train])
        slopes = np.linalg.lstsq(scaled[train], score[train], rcond=None)[0]
        rest[test] = score[test] - scaled[test] @ slopes
        logit = scaled[test] @ heldout.fit_logistic(scaled[train], won[train], RULER_L2)
        weight[test] = expit(np.where(won[test], -logit, logit))
    paired = PairedRounds(rest, won)
    value = float(paired.auc(weight[None])[0])
    samples = rounds.samples(lambda counts: paired.auc(counts * weight), part)
    sizes = [weight[side].sum() ** 2 / (weight[side] ** 2).sum() for side in (won, ~won)]
    interval = prompt_interval(samples, value, prompts, auc_interval(value, *sizes))
    return {"auc": value, "auc_ci95": interval}


def by_columns(decided: Battles, names: Sequence[str], rounds: Rounds) -> dict[str, Any]:
    """The key `by`; nothing where no column is asked for."""
    if not decided.by or not names:
        return {}
    found: dict[str, Any] = {
        column: {name: _by_column(decided, labels, name, rounds) for name in names}
        for column, labels in decided.by.items()
    }
    entries = [entry for part in found.values() for entry in part.values()]
    tested = [entry for entry in entries if entry["p_value"] is not None]
    for entry, p_value in zip(tested, holm([e["p_value"] for e in tested]), strict=True):
        entry["p_value"] = float(p_value)
    for column, (first, *others) in ((column, list(part)) for column, part in found.items()):
        rest = {"others": {name: found[column][name] for name in others}} if others else {}
        found[column] = {**found[column][first], "score": first, **rest}
    return {"by": found}


def _by_column(decided: Battles, labels: Any, name: str, rounds: Rounds) -> dict[str, Any]:
    """Figures of one score by the values of one column, and the test of equal accuracy."""
    there = np.isfinite(decided.difference(name)) & (labels != "")
    part, values = decided.select(there), labels[there]
    difference = part.difference(name)
    groups = {
        str(value): f.figures(difference[values == value], part.select(values == value), rounds)
        for value in np.unique(values)
    }
    large = [value for value, entry in groups.items() if entry["n"] >= DIRECTION_MIN]
    result: dict[str, Any] = {"groups": groups, "p_value": None, "gap": None}
    if len(large) < 2:
        return result
    accuracies = [groups[value]["accuracy"] for value in large]
    result["gap"] = max(accuracies) - min(accuracies)
    prompts = {value: len(np.unique(part.clusters[values == value])) for value in large}
    large = [value for value in large if prompts[value] > 1]  # one prompt tells nothing of others
    if len(large) < 2:
        return result
    right = correctness(difference, part.a_won)
    member = np.stack([values == value for value in large])
    hits, sizes = member @ right, member.sum(axis=1)
    table = np.stack([hits, sizes - hits])
    if (table.sum(axis=1) == 0).any():  # right, or wrong, on every battle
        return {**result, "p_value": 1.0}
    effect, freedom = _design_effect(part, member, right, rounds), len(large) - 1
    statistic = stats.chi2_contingency(table, correction=False).statistic / effect / freedom
    others = sum(prompts[value] - 1 for value in large)
    return {**result, "p_value": float(stats.f.sf(statistic, freedom, others))}


def _design_effect(part: Battles, member: Any, right: FloatArray, rounds: Rounds) -> float:
    """How much votes that share a prompt widen the groups' accuracies."""
    if not part.has_prompts:
        return 1.0

    def accuracies(counts: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.asarray((counts @ (member * right).T) / (counts @ member.T))

    share = member @ right / member.sum(axis=1)
    plain = share * (1 - share) / member.sum(axis=1)
    usable = plain > 0
    spread = np.nanvar(rounds.samples(accuracies, part), axis=0)
    return max(1.0, float(np.mean((spread / plain)[usable]))) if usable.any() else 1.0
