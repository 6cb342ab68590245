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
- `mcnemar`: "X vs Y" -> battles that only X or only Y got right, and the exact two-sided p;
  `versus_systems`: NAME -> the same of the score against `system_only`, where systems are named.
- `baselines.system_only`: Bradley-Terry strengths of the systems, fitted in grouped folds and
  judged on the held-out battles (null without system names).

Shape key: N = battles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from apex_reward.arena.battles import Battles, BoolArray
from apex_reward.arena.bootstrap import PairedRounds, bootstrap_rounds, resample_counts
from apex_reward.arena.intervals import (
    Interval,
    accuracy_interval,
    auc_interval,
    direction,
    hull,
    pairwise_error,
    rank_test,
)
from apex_reward.arena.reliability import FOLDS, SLOPE_L2, held_out_probability, reliability
from apex_reward.arena.results import (
    NO_FIGURES,
    AgreementResult,
    ArenaSettings,
    Baselines,
    Disagreement,
    Figures,
    McNemar,
    Overall,
    Reliability,
    Strata,
)
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

DISAGREEMENTS = 10  # battles listed per score
SYSTEM_L2 = 1.0


def evaluate_battles(battles: Battles, *, bootstrap: int = 1000, seed: int = 0) -> AgreementResult:
    """Agreement of every score of `battles`; `to_json` of it is what `metrics.json` holds.

    Args:
        battles: at least one of them decided and with a score.
        bootstrap: bootstrap rounds of every interval.
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
    known = system_differences(decided, seed)
    return AgreementResult(
        n_battles=battles.n_read,
        n_decided=len(decided),
        dropped={**dropped, "missing_score": int((~complete).sum())},
        missing_by_score={name: int((~there).sum()) for name, there in scored.items()},
        scores={
            name: score_figures(decided.select(scored[name]), name, bootstrap=bootstrap, seed=seed)
            for name in usable
        },
        baselines=baselines(decided, known, bootstrap=bootstrap, seed=seed),
        mcnemar={
            f"{first} vs {second}": mcnemar(decided, first, second)
            for first, second in itertools.combinations(usable, 2)
        },
        versus_systems={
            name: _mcnemar_where_both(decided.difference(name), known, decided.a_won)
            for name in usable
            if not np.isnan(known).all()
        },
        notes=tuple(notes),
        settings=ArenaSettings(bootstrap, seed, folds=FOLDS),
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


def score_figures(decided: Battles, name: str, *, bootstrap: int, seed: int) -> Strata:
    """Figures of one score in every stratum of decided battles that all have the score."""
    difference, won = decided.difference(name), decided.a_won
    result = stratum_figures(decided, difference, bootstrap=bootstrap, seed=seed)
    probability = held_out_probability(
        difference[:, None], won, decided.clusters, l2=SLOPE_L2, seed=seed
    )
    overall = replace(
        with_reliability(result.overall, reliability(probability, won)),
        disagreements=disagreements(decided, name),
    )
    if decided.has_systems.any():
        named = decided.select(decided.has_systems)
        within, interval = _within_system_pairs(named, name, bootstrap=bootstrap, seed=seed)
        overall = replace(
            overall, auc_within_system_pairs=within, auc_within_system_pairs_ci95=interval
        )
    return replace(result, overall=overall)


def with_reliability(overall: Overall, found: Reliability) -> Overall:
    """Figures with the expected calibration error and its curve."""
    return replace(overall, ece=found.ece, reliability=found.reliability)


def disagreements(decided: Battles, name: str) -> tuple[Disagreement, ...]:
    """The battles where score and vote differ most; equal differences in input order."""
    against = np.where(decided.a_won, -1.0, 1.0) * decided.difference(name)
    order = np.argsort(-against, kind="stable")[:DISAGREEMENTS]
    return tuple(
        Disagreement(
            battle_uuid=str(decided.uuid[row]),
            preference=str(decided.vote[row]),
            score_a=float(decided.scores[name][row, 0]),
            score_b=float(decided.scores[name][row, 1]),
            audio_a=str(decided.audio[row, 0]) or None,
            audio_b=str(decided.audio[row, 1]) or None,
            system_a=str(decided.system[row, 0]) or None,
            system_b=str(decided.system[row, 1]) or None,
            prompt=str(decided.prompt[row]),
        )
        for row in order[against[order] > 0].tolist()
    )


def stratum_figures(
    decided: Battles, difference: FloatArray, *, bootstrap: int, seed: int
) -> Strata:
    """Figures of (N,) differences of decided battles, overall and by stratum."""
    found = {
        stratum: figures(difference[rows], decided.select(rows), bootstrap=bootstrap, seed=seed)
        for stratum, rows in strata(decided)
    }
    return Strata(Overall(**vars(found.pop("overall"))), found)


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


def figures(difference: FloatArray, part: Battles, *, bootstrap: int, seed: int) -> Figures:
    """n, accuracy, AUC, their intervals, the direction and the p-value of (N,) differences."""
    won = part.a_won
    n_won = int(won.sum())
    value = auc(difference, won)
    by_battle = accuracy_interval(difference, won), auc_interval(value, n_won, len(won) - n_won)
    correct = correctness(difference, won)
    result = Figures(
        n=len(part),
        accuracy=accuracy(difference, won),
        accuracy_ci95=by_battle[0],
        auc=value,
        auc_ci95=by_battle[1],
        direction=direction(len(part), by_battle[1], rank_test(difference, won)),
        p_value=binomial_p_value(int((correct == 1).sum()), int((correct != 0.5).sum())),
    )
    if not part.has_prompts:
        return result
    samples = bootstrap_rounds(difference, won, rounds=bootstrap, seed=seed, clusters=part.clusters)
    by_prompt = [
        hull(percentile_interval(values), interval)
        for values, interval in zip(samples, by_battle, strict=True)
    ]
    low, high = by_prompt[1]
    return replace(
        result,
        accuracy_ci95_by_prompt=by_prompt[0],
        auc_ci95_by_prompt=by_prompt[1],
        direction="undetermined" if low <= 0.5 <= high else result.direction,
    )


def baselines(decided: Battles, known: FloatArray, *, bootstrap: int, seed: int) -> Baselines:
    """What the position alone and the systems alone predict, in the form of a score.

    Args:
        known: (N,) of `system_differences`.
    """
    always_a = figures(np.ones(len(decided)), decided, bootstrap=bootstrap, seed=seed)
    by_position = replace(
        always_a, auc=None, auc_ci95=None, auc_ci95_by_prompt=None, direction=None
    )
    there = ~np.isnan(known)
    by_system = (
        figures(known[there], decided.select(there), bootstrap=bootstrap, seed=seed)
        if there.any()
        else NO_FIGURES
    )
    return Baselines(by_position, by_system)


def system_differences(decided: Battles, seed: int) -> FloatArray:
    """(N,) held-out P(A wins) - 0.5 of the systems' strengths alone, NaN where none can be told."""
    known = np.full(len(decided), math.nan)
    named = decided.select(decided.has_systems)
    if len(np.unique(named.clusters)) > 1:
        known[decided.has_systems] = (
            held_out_probability(
                system_features(named)[0], named.a_won, named.clusters, l2=SYSTEM_L2, seed=seed
            )
            - 0.5
        )
    return known


def system_features(battles: Battles) -> tuple[FloatArray, list[str]]:
    """(N, number of systems) +1 for A's system, -1 for B's, 0 twice for the same; and names."""
    names = sorted(set(battles.system[battles.has_systems].ravel().tolist()))
    features = np.zeros((len(battles), len(names)))
    for side, sign in ((0, 1.0), (1, -1.0)):
        for column, name in enumerate(names):
            features[:, column] += sign * (battles.system[:, side] == name)
    return features, names


def mcnemar(battles: Battles, first: str, second: str) -> McNemar:
    """Exact McNemar test of two scores on the battles that have both."""
    return _mcnemar_where_both(battles.difference(first), battles.difference(second), battles.a_won)


def _mcnemar_where_both(first: FloatArray, second: FloatArray, a_won: BoolArray) -> McNemar:
    both = ~np.isnan(first) & ~np.isnan(second)
    return mcnemar_of(first[both], second[both], a_won[both])


def mcnemar_of(first: FloatArray, second: FloatArray, a_won: BoolArray) -> McNemar:
    """Exact McNemar test of two (N,) differences (McNemar 1947).

    A battle counts for the one that is more right on it; a tied score is half right.
    """
    gain = correctness(first, a_won) - correctness(second, a_won)
    only_first, only_second = int((gain > 0).sum()), int((gain < 0).sum())
    p_value = binomial_p_value(only_first, only_first + only_second)
    return McNemar(len(a_won), only_first, only_second, p_value)


def _within_system_pairs(
    part: Battles, name: str, *, bootstrap: int, seed: int
) -> tuple[float, Interval]:
    """AUC over comparisons of battles between the same two systems, turned the same way round."""
    turned = part.system[:, 0] > part.system[:, 1]
    difference = np.where(turned, -1.0, 1.0) * part.difference(name)
    first_won = part.a_won ^ turned
    pair = cluster_codes(pair_names(part))
    won = np.bincount(pair[first_won], minlength=pair.max() + 1)
    lost = np.bincount(pair) - won
    paired = PairedRounds(difference, first_won, pair)
    samples = [paired.auc(counts) for counts in resample_counts(len(part), bootstrap, seed)]
    value = float(paired.auc(np.ones((1, len(part))))[0])
    reach = 1.96 * pairwise_error(won.astype(np.float64), lost.astype(np.float64))
    # Few comparisons: no narrower than what an order that says nothing would spread.
    around = max(0.0, value - reach), min(1.0, value + reach)
    return value, hull(percentile_interval(np.concatenate(samples)), around)
