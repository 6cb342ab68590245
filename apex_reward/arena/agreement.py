"""Does a score agree with people? Accuracy, AUC, intervals, direction and baselines of battles.

`evaluate` returns what `metrics.json` holds. Beside the documented keys:

- `missing_by_score`: decided battles that lack NAME; `dropped.missing_score` counts the decided
  battles that lack any of the evaluated scores. Such a battle still counts for the others.
- `accuracy_ci95` is exact and `auc_ci95` a score interval (`arena.intervals`), so that both hold
  for a handful of battles; `direction` is claimed by the rule there, and where prompts are given
  only if `auc_ci95_by_prompt` leaves 0.5 out on the same side.
- figures of a stratum (`overall`, `instrumental`, `vocal`, `month:2026-02`, `system_pair:X vs Y`):
  `n`, `accuracy`, `accuracy_ci95`, `auc`, `auc_ci95`, `direction`, `p_value`, and where prompts
  are given `accuracy_ci95_by_prompt`, `auc_ci95_by_prompt` (whole prompts resampled, never
  narrower than the interval over battles). A stratum
  without battles is left out. With one class only the AUC is null and the direction undetermined.
- `p_value` leaves score ties out, as the sign test does; the accuracy counts them one half.
- `overall` adds `ece` and `reliability`: P(A wins) = sigmoid(slope * difference), the slope fitted
  in grouped folds and judged on the held-out battles, in bins of equally many battles; and
  `auc_within_system_pairs`: only battles between the same two systems are compared, so a score
  that knows systems and nothing of songs gets 0.5 there.
- `overall` also adds `disagreements`: the battles whose vote the score found least likely, that
  is with the largest difference against the vote, the worst first (at most `DISAGREEMENTS`).
- `mcnemar`: "X vs Y" -> battles that only X or only Y got right, and the exact two-sided p.
- `baselines.system_only`: Bradley-Terry strengths of the systems, fitted in grouped folds and
  judged on the held-out battles (null without system names).

Shape key: N = battles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_reward.arena.battles import Battles, BoolArray
from apex_reward.arena.bootstrap import PairedRounds, bootstrap_rounds, resample_counts
from apex_reward.arena.intervals import (
    accuracy_interval,
    auc_interval,
    direction,
    hull,
    pairwise_error,
    rank_test,
)
from apex_reward.arena.logistic import fit_logistic, group_folds, sigmoid, splits
from apex_reward.arena.records import json_ready
from apex_reward.errors import DataError, listed
from apex_reward.metrics import (
    FloatArray,
    IntArray,
    accuracy,
    auc,
    binomial_p_value,
    cluster_codes,
    correctness,
    percentile_interval,
)

FOLDS = 10
DISAGREEMENTS = 10  # battles listed per score
SYSTEM_L2 = 1.0
SLOPE_L2 = 1e-6  # next to none: keeps the slope finite where one value separates the votes


def evaluate(battles: Battles, *, rounds: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The content of `metrics.json` for every score of `battles`; JSON-ready, NaN as None.

    Args:
        battles: at least one of them decided and with a score.
        rounds: bootstrap rounds of every interval.
        seed: of the bootstrap and of the folds.

    Raises:
        DataError: no decided battle, or no score that any decided battle has.
    """
    decided, dropped, notes = decided_battles(battles)
    scored = {name: ~np.isnan(decided.difference(name)) for name in decided.scores}
    usable = [name for name, there in scored.items() if there.any()]
    if not usable:
        raise DataError(
            "no decided battle has a score; scores are pairs of numeric columns NAME_a, NAME_b"
            + (f" (empty here: {listed(scored)})" if scored else "")
        )
    notes += [f"{name} is missing in every decided battle" for name in scored if name not in usable]
    complete = np.all([scored[name] for name in usable], axis=0)
    return json_ready(
        {
            "n_battles": battles.n_read,
            "n_decided": len(decided),
            "dropped": {**dropped, "missing_score": int((~complete).sum())},
            "missing_by_score": {name: int((~there).sum()) for name, there in scored.items()},
            "scores": {
                name: score_figures(decided.select(scored[name]), name, rounds=rounds, seed=seed)
                for name in usable
            },
            "baselines": baselines(decided, rounds=rounds, seed=seed),
            "mcnemar": {
                f"{first} vs {second}": mcnemar(decided, first, second)
                for first, second in itertools.combinations(usable, 2)
            },
            "notes": notes,
            "settings": {"bootstrap": rounds, "seed": seed, "folds": FOLDS},
        }
    )


def decided_battles(battles: Battles) -> tuple[Battles, dict[str, int], list[str]]:
    """The battles with a vote for A or B, the counts of all others, and notes on the data."""
    decided = battles.select(battles.decided)
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


def score_figures(decided: Battles, name: str, *, rounds: int, seed: int) -> dict[str, Any]:
    """Figures of one score in every stratum of decided battles that all have the score."""
    difference, won = decided.difference(name), decided.a_won
    result = stratum_figures(decided, difference, rounds=rounds, seed=seed)
    probability = held_out_probability(
        difference[:, None], won, decided.clusters, l2=SLOPE_L2, seed=seed
    )
    result["overall"].update(reliability(probability, won))
    result["overall"]["disagreements"] = disagreements(decided, name)
    if decided.has_systems.any():
        named = decided.select(decided.has_systems)
        result["overall"].update(_within_system_pairs(named, name, rounds=rounds, seed=seed))
    return result


def disagreements(decided: Battles, name: str) -> list[dict[str, Any]]:
    """The battles where score and vote differ most; equal differences in input order."""
    against = np.where(decided.a_won, -1.0, 1.0) * decided.difference(name)
    order = np.argsort(-against, kind="stable")[:DISAGREEMENTS]
    rows = []
    for row in order[against[order] > 0].tolist():
        sides = {
            f"{column}_{side}": values[row, position].item() or None
            for column, values in (("audio", decided.audio), ("system", decided.system))
            for position, side in enumerate("ab")
        }
        scores = dict(zip(("score_a", "score_b"), decided.scores[name][row].tolist(), strict=True))
        rows.append(
            {
                "battle_uuid": str(decided.uuid[row]),
                "preference": str(decided.vote[row]),
                **scores,
                **sides,
                "prompt": str(decided.prompt[row]),
            }
        )
    return rows


def stratum_figures(
    decided: Battles, difference: FloatArray, *, rounds: int, seed: int
) -> dict[str, Any]:
    """Stratum -> figures of (N,) differences of decided battles."""
    return {
        stratum: figures(difference[rows], decided.select(rows), rounds=rounds, seed=seed)
        for stratum, rows in strata(decided)
    }


def strata(battles: Battles) -> Iterator[tuple[str, IntArray]]:
    """Names and row numbers of the strata that hold any battle, `overall` first."""
    yield "overall", np.arange(len(battles))
    for name, value in (("instrumental", 1.0), ("vocal", 0.0)):
        rows = np.flatnonzero(battles.instrumental == value)
        if len(rows):
            yield name, rows
    for label, keys in (("month", battles.month), ("system_pair", pair_names(battles))):
        for key in np.unique(keys[keys != ""]):
            yield f"{label}:{key}", np.flatnonzero(keys == key)


def pair_names(battles: Battles) -> npt.NDArray[np.str_]:
    """(N,) `X vs Y`, the two systems in alphabetical order; empty where one is not named."""
    names = [" vs ".join(sorted(pair)) if all(pair) else "" for pair in battles.system.tolist()]
    return np.array(names, dtype=np.str_)


def figures(difference: FloatArray, part: Battles, *, rounds: int, seed: int) -> dict[str, Any]:
    """n, accuracy, AUC, their intervals, the direction and the p-value of (N,) differences."""
    won = part.a_won
    n_won = int(won.sum())
    value = auc(difference, won)
    by_battle = accuracy_interval(difference, won), auc_interval(value, n_won, len(won) - n_won)
    correct = correctness(difference, won)
    claimed = direction(len(part), by_battle[1], rank_test(difference, won))
    result: dict[str, Any] = {
        "n": len(part),
        "accuracy": accuracy(difference, won),
        "accuracy_ci95": by_battle[0],
        "auc": value,
        "auc_ci95": by_battle[1],
        "direction": claimed,
        "p_value": binomial_p_value(int((correct == 1).sum()), int((correct != 0.5).sum())),
    }
    if part.has_prompts:
        samples = bootstrap_rounds(
            difference, won, rounds=rounds, seed=seed, clusters=part.clusters
        )
        by_prompt = [
            hull(percentile_interval(values), interval)
            for values, interval in zip(samples, by_battle, strict=True)
        ]
        result["accuracy_ci95_by_prompt"], result["auc_ci95_by_prompt"] = by_prompt
        low, high = by_prompt[1]
        if low <= 0.5 <= high:
            result["direction"] = "undetermined"
    return result


def baselines(decided: Battles, *, rounds: int, seed: int) -> dict[str, Any]:
    """What the position alone and the systems alone predict, in the form of a score."""
    always_a = figures(np.ones(len(decided)), decided, rounds=rounds, seed=seed)
    by_position = {key: value for key, value in always_a.items() if "auc" not in key}
    by_position.pop("direction")
    named = decided.select(decided.has_systems)
    by_system: dict[str, Any] = {"n": 0, "accuracy": None, "accuracy_ci95": None}
    if len(np.unique(named.clusters)) > 1:
        probability = held_out_probability(
            system_features(named)[0], named.a_won, named.clusters, l2=SYSTEM_L2, seed=seed
        )
        by_system = figures(probability - 0.5, named, rounds=rounds, seed=seed)
    return {"position_a": by_position, "system_only": by_system}


def system_features(battles: Battles) -> tuple[FloatArray, list[str]]:
    """(N, number of systems) +1 for A's system, -1 for B's, 0 twice for the same; and names."""
    names = sorted(set(battles.system[battles.has_systems].ravel().tolist()))
    features = np.zeros((len(battles), len(names)))
    for side, sign in ((0, 1.0), (1, -1.0)):
        for column, name in enumerate(names):
            features[:, column] += sign * (battles.system[:, side] == name)
    return features, names


def held_out_probability(
    features: FloatArray, a_won: BoolArray, groups: IntArray, *, l2: float, seed: int
) -> FloatArray:
    """(N,) P(A wins), each battle predicted by a fit on the folds without its group.

    Features are scaled to unit mean square on the training folds. NaN where there is one group.
    """
    probability = np.full(len(a_won), math.nan)
    if len(np.unique(groups)) < 2:
        return probability
    label = a_won.astype(np.float64)
    for train, test in splits(group_folds(groups, FOLDS, seed)):
        scale = root_mean_square(features[train])
        coefficients = fit_logistic(features[train] / scale, label[train], l2)
        probability[test] = sigmoid(features[test] / scale @ coefficients)
    return probability


def root_mean_square(features: FloatArray) -> FloatArray:
    """(P,) scale of every column about zero; 1 for a column of zeros."""
    scale = np.sqrt(np.mean(features**2, axis=0))
    return np.asarray(np.where(scale > 0, scale, 1.0))


def reliability(probability: FloatArray, a_won: BoolArray, bins: int = 10) -> dict[str, Any]:
    """`ece` and the curve behind it: (N,) probabilities in bins of equally many battles.

    ece = sum over bins of share of battles * |mean probability - share that A won| (Naeini 2015).
    """
    if np.isnan(probability).any():
        return {"ece": math.nan, "reliability": []}
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    curve = [
        {
            "predicted": float(probability[part].mean()),
            "observed": float(a_won[part].mean()),
            "n": len(part),
        }
        for part in parts
    ]
    gaps = [point["n"] * abs(point["predicted"] - point["observed"]) for point in curve]
    return {"ece": sum(gaps) / len(order), "reliability": curve}


def mcnemar(battles: Battles, first: str, second: str) -> dict[str, Any]:
    """Exact McNemar test of two scores on the battles that have both."""
    one, other = battles.difference(first), battles.difference(second)
    both = ~np.isnan(one) & ~np.isnan(other)
    return mcnemar_of(one[both], other[both], battles.a_won[both])


def mcnemar_of(first: FloatArray, second: FloatArray, a_won: BoolArray) -> dict[str, Any]:
    """Exact McNemar test of two (N,) differences (McNemar 1947).

    A battle counts for the one that is more right on it; a tied score is half right.
    """
    gain = correctness(first, a_won) - correctness(second, a_won)
    only_first, only_second = int((gain > 0).sum()), int((gain < 0).sum())
    return {
        "n": len(a_won),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": binomial_p_value(only_first, only_first + only_second),
    }


def _within_system_pairs(part: Battles, name: str, *, rounds: int, seed: int) -> dict[str, Any]:
    """AUC over comparisons of battles between the same two systems, turned the same way round."""
    turned = part.system[:, 0] > part.system[:, 1]
    difference = np.where(turned, -1.0, 1.0) * part.difference(name)
    first_won = part.a_won ^ turned
    pair = cluster_codes(pair_names(part))
    won = np.bincount(pair[first_won], minlength=pair.max() + 1)
    lost = np.bincount(pair) - won
    paired = PairedRounds(difference, first_won, pair)
    samples = [paired.auc(counts) for counts in resample_counts(len(part), rounds, seed)]
    value = float(paired.auc(np.ones((1, len(part))))[0])
    reach = 1.96 * pairwise_error(won.astype(np.float64), lost.astype(np.float64))
    # Few comparisons: no narrower than what an order that says nothing would spread.
    around = max(0.0, value - reach), min(1.0, value + reach)
    return {
        "auc_within_system_pairs": value,
        "auc_within_system_pairs_ci95": hull(percentile_interval(np.concatenate(samples)), around),
    }
