"""Does a score agree with people? What `arena evaluate` writes to `metrics.json`.

`evaluate_battles` returns it. Figures are described in `apex_reward.arena.figures`. Further keys:

- `dropped`: reason -> battles without a part in some figure. `unreadable` counts battles with a
  cell of a score that is no number, `missing_score` the other decided battles that lack a score;
  both count for the scores that they have.
- `scores.NAME`: figures of the strata `overall`, `instrumental`, `vocal`, `month:2026-02` and
  `system_pair:X vs Y`; a stratum without battles is absent. `overall` adds `ece` and `reliability`
  (`arena.heldout.reliability` of a slope fitted in grouped folds), `disagreements` (the battles
  whose vote contradicts the score most), and where systems are named `auc_within_system_pairs`
  with its interval: only battles between the same two systems are compared, so that a score that
  knows systems and not songs has 0.5. It is null without two battles to compare.
- `mcnemar`: "X vs Y" -> `n`, battles that only X or only Y got right, and the exact two-sided p,
  adjusted by Holm's method over all pairs of scores. `versus_systems`: the same for each score
  against `system_only`, adjusted over the scores.
- `baselines`: `position_a`, the share that A won; `system_only`, Bradley-Terry strengths of the
  systems, fitted in grouped folds and measured on the held-out battles.
- `rulers`, `best_ruler`, `versus_best_ruler`, `scores.NAME.after_rulers` and `by`:
  `apex_reward.arena.bias`.

Shape key: N = battles.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from apex_reward.arena import figures as f
from apex_reward.arena.battles import RULERS, Battles
from apex_reward.arena.bias import by_columns, ruler_part
from apex_reward.arena.figures import Figures, Rounds
from apex_reward.arena.heldout import FOLDS, SLOPE_L2, held_out_logit, reliability
from apex_reward.arena.intervals import Interval, PairedRounds, hull, pairwise_error
from apex_reward.errors import DataError, listed
from apex_reward.files.tables import json_ready
from apex_reward.metrics import FloatArray, bootstrap, cluster_codes, percentile_interval

DISAGREEMENTS = 10  # battles listed per score
SYSTEM_L2 = 1.0


def evaluate_battles(battles: Battles, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Agreement of every score of `battles` with the votes: what `metrics.json` holds.

    Args:
        battles: at least one of them decided and with a score.
        bootstrap: bootstrap rounds of every interval.
        seed: random seed of the bootstrap and of the folds.

    Raises:
        DataError: no decided battle, or no score that any decided battle has.
    """
    rounds = Rounds(bootstrap, seed)
    decided, dropped, notes = f.decided_battles(battles)
    lead = {name: decided.difference(name) for name in decided.scores}
    scored = {name: np.isfinite(difference) for name, difference in lead.items()}
    usable = [name for name, there in scored.items() if there.any()]
    if not usable:
        raise DataError(
            "no decided battle has a score; scores are pairs of numeric columns NAME_a, NAME_b"
            + (f" (empty here: {listed(scored)})" if scored else "")
        )
    notes += [f"{name} is missing in every decided battle" for name in scored if name not in usable]
    names = [name for name in usable if not name.startswith(RULERS)]
    complete = np.all([np.full(len(decided), True), *(scored[name] for name in names)], axis=0)
    if unreadable := int(decided.unreadable.sum()):
        dropped["unreadable"] = dropped.get("unreadable", 0) + unreadable
    dropped["missing_score"] = int((~complete & ~decided.unreadable).sum())
    scores = {name: score_figures(decided.select(scored[name]), name, rounds) for name in names}
    f.claim_directions(scores.values())
    systems, won = system_logit(decided, seed), decided.a_won
    known = np.isfinite(systems)
    pairs = itertools.combinations(names, 2)
    always_a = f.figures(np.ones(len(decided)), decided, rounds)
    system_only: Figures = {"n": 0, "accuracy": math.nan, "accuracy_ci95": None}
    if known.any():
        system_only = f.figures(systems[known], decided.select(known), rounds)
    result = {
        "n_battles": battles.n_read,
        "n_decided": len(decided),
        "dropped": dropped,
        "scores": scores,
        "baselines": {
            "position_a": {key: n for key, n in always_a.items() if not key.startswith("auc")},
            "system_only": system_only,
        },
        "mcnemar": f.adjusted({f"{a} vs {b}": f.mcnemar(lead[a], lead[b], won) for a, b in pairs}),
        "versus_systems": f.adjusted(
            {name: f.mcnemar(lead[name], systems, won) for name in names if known.any()}
        ),
        **ruler_part(decided, [name for name in usable if name not in names], scores, rounds),
        **by_columns(decided, names, rounds),
        "notes": notes,
        "settings": {"bootstrap": bootstrap, "seed": seed, "folds": FOLDS},
    }
    return dict(json_ready(result))


def score_figures(decided: Battles, name: str, rounds: Rounds) -> Figures:
    """Figures of one score in every stratum of decided battles that all have the score."""
    difference, won = decided.difference(name), decided.a_won
    found = f.stratum_figures(decided, difference, rounds)
    logit = held_out_logit(
        difference[:, None], won, decided.clusters, l2=SLOPE_L2, seed=rounds.seed
    )
    found["overall"] |= reliability(logit, won) | {"disagreements": disagreements(decided, name)}
    if decided.has_systems.any():
        value, interval = _within_system_pairs(decided.select(decided.has_systems), name, rounds)
        found["overall"]["auc_within_system_pairs"] = value
        found["overall"]["auc_within_system_pairs_ci95"] = interval
    return found


def disagreements(decided: Battles, name: str) -> list[dict[str, Any]]:
    """The battles where score and vote differ most, at most `DISAGREEMENTS`."""
    against = np.where(decided.a_won, -1.0, 1.0) * decided.difference(name)
    order = np.argsort(-against, kind="stable")[:DISAGREEMENTS]
    worst = decided.select(order[against[order] > 0])
    return [
        {
            "battle_uuid": str(worst.uuid[row]),
            "preference": str(worst.vote[row]),
            **{f"score_{s}": float(worst.scores[name][row, n]) for n, s in enumerate("ab")},
            **{f"audio_{s}": str(worst.audio[row, n]) or None for n, s in enumerate("ab")},
            **{f"system_{s}": str(worst.system[row, n]) or None for n, s in enumerate("ab")},
            "prompt": str(worst.prompt[row]),
        }
        for row in range(len(worst))
    ]


def _within_system_pairs(part: Battles, name: str, rounds: Rounds) -> tuple[float, Interval | None]:
    """AUC over comparisons of battles between the same two systems, with the same system first."""
    turned = part.system[:, 0] > part.system[:, 1]
    difference = np.where(turned, -1.0, 1.0) * part.difference(name)
    first_won, pair = part.a_won ^ turned, cluster_codes(part.pair)
    won = np.bincount(pair[first_won], minlength=pair.max() + 1)
    paired = PairedRounds(difference, first_won, pair)
    value = float(paired.auc(np.ones((1, len(part))))[0])
    if math.isnan(value):
        return value, None
    samples = bootstrap(paired.auc, len(part), rounds=rounds.bootstrap, seed=rounds.seed)
    low, high = percentile_interval(samples)
    # Few comparisons: at least as wide as the spread of a score without information.
    reach = 1.96 * pairwise_error(won, np.bincount(pair) - won)
    around = max(0.0, value - reach), min(1.0, value + reach)
    return value, hull(around, None if math.isnan(low) else (low, high))


def system_logit(decided: Battles, seed: int) -> FloatArray:
    """(N,) held-out log-odds that A wins by the systems' strengths alone, NaN where not known."""
    logit = np.full(len(decided), math.nan)
    named = decided.select(decided.has_systems)
    features, _ = system_features(named)
    logit[decided.has_systems] = held_out_logit(
        features, named.a_won, named.clusters, l2=SYSTEM_L2, seed=seed
    )
    return logit


def system_features(battles: Battles) -> tuple[FloatArray, list[str]]:
    """(N, number of systems) +1 for A's system, -1 for B's, 0 twice for the same; and names."""
    names = sorted(set(battles.system[battles.has_systems].ravel().tolist()))
    sides = battles.system[:, :, None] == np.array(names, dtype=np.str_)
    return sides[:, 0].astype(np.float64) - sides[:, 1], names
