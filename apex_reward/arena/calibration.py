"""Calibration: P(A wins) = sigmoid(slope * (a - b) + bias[system_a] - bias[system_b]).

Antisymmetric by construction: everything is a difference and there is no constant. Several scores
have a slope each, and with song embeddings there is a weight for each dimension. One Gaussian prior
(L2) holds all coefficients; features are scaled to unit mean square, the embedding as a whole to
the size of one feature. Its strength is chosen in inner folds, and the figures are of outer folds;
both keep a prompt together where prompts are named. Biases that explain all of the gain are about
systems, not songs, and the verdict states it.

Shape key: N = battles, M = scores, Y = systems, W = embedding width, P = M + Y + W.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from apex_reward.arena.agreement import system_features
from apex_reward.arena.battles import Battles
from apex_reward.arena.figures import (
    LEVEL,
    Figures,
    Rounds,
    claim_directions,
    decided_battles,
    mcnemar,
    stratum_figures,
)
from apex_reward.arena.heldout import (
    FOLDS,
    SLOPE_L2,
    choose_l2,
    fit_logistic,
    group_folds,
    held_out_logit,
    reliability,
    root_mean_square,
)
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import json_ready
from apex_reward.metrics import FloatArray, IntArray, accuracy
from apex_reward.scores.preference import PreferenceHead

COMPARED = ("uncalibrated", "calibrated", "songs_only", "system_only")


@dataclass(frozen=True)
class Design:
    """Features of decided battles, all differences.

    Attributes:
        scores: (N, M) score of A minus score of B.
        systems: (N, Y) +1 for A's system, -1 for B's.
        embeddings: (N, W) embedding of A minus embedding of B; W is 0 without embeddings.
        label: (N,) 1 where A won.
        groups: (N,) prompt of each battle, or the battle itself.
    """

    names: tuple[str, ...]
    system_names: tuple[str, ...]
    scores: FloatArray
    systems: FloatArray
    embeddings: FloatArray
    label: FloatArray
    groups: IntArray

    def select(self, rows: IntArray) -> Design:
        """The battles of some rows."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays: dict[str, Any] = {
            name: value[rows] for name, value in found.items() if isinstance(value, np.ndarray)
        }
        return replace(self, **arrays)

    def uncalibrated(self) -> FloatArray:
        """(N,) the score difference itself; of several, the sum of differences of one size."""
        if len(self.names) == 1:
            return self.scores[:, 0]
        return np.asarray((self.scores / root_mean_square(self.scores)).sum(axis=1))


@dataclass(frozen=True)
class Calibration:
    """Fitted coefficients, per unit of each score, in log-odds.

    Attributes:
        slopes: score name -> log-odds per unit of its difference.
        biases: system -> log-odds; they sum to zero, as their features do.
        embedding_weights: (W,) or None.
        l2: strength of the prior on the scaled features.
    """

    slopes: dict[str, float]
    biases: dict[str, float]
    embedding_weights: tuple[float, ...] | None
    l2: float

    def song_logit(self, design: Design) -> FloatArray:
        """(N,) log-odds from the songs alone: scores and embeddings."""
        logit = design.scores @ np.array([self.slopes[name] for name in design.names])
        if self.embedding_weights is not None:
            logit = logit + design.embeddings @ np.array(self.embedding_weights)
        return np.asarray(logit)

    def logit(self, design: Design) -> FloatArray:
        """(N,) log-odds that A wins, the systems included; an unseen system has bias 0."""
        biases = np.array([self.biases.get(name, 0.0) for name in design.system_names])
        return self.song_logit(design) + design.systems @ biases


def design_of(
    decided: Battles, names: Sequence[str], embeddings: FloatArray | None = None
) -> Design:
    """Features of decided battles that have every score; `embeddings` is (N, 2, W) of A and B."""
    systems, system_names = system_features(decided)
    vectors = np.zeros((len(decided), 2, 0)) if embeddings is None else embeddings
    return Design(
        names=tuple(names),
        system_names=tuple(system_names),
        scores=np.stack([decided.difference(name) for name in names], axis=1),
        systems=systems,
        embeddings=vectors[:, 0] - vectors[:, 1],
        label=decided.a_won.astype(np.float64),
        groups=decided.clusters,
    )


def fit_calibration(design: Design, *, l2: float | None = None, seed: int = 0) -> Calibration:
    """Fit slopes, biases and embedding weights together; `l2` None: chosen in grouped folds."""
    width = design.embeddings.shape[1]
    score_scale = root_mean_square(design.scores)
    embedding_scale = root_mean_square(design.embeddings) * math.sqrt(max(width, 1))
    features = np.hstack(
        [design.scores / score_scale, design.systems, design.embeddings / embedding_scale]
    )
    if l2 is None:
        l2 = choose_l2(features, design.label, design.groups, seed=seed)
    coefficients = fit_logistic(features, design.label, l2)
    slopes, biases, weights = np.split(
        coefficients, np.cumsum([len(design.names), len(design.system_names)])
    )
    return Calibration(
        slopes=dict(zip(design.names, (slopes / score_scale).tolist(), strict=True)),
        biases=dict(zip(design.system_names, biases.tolist(), strict=True)),
        embedding_weights=tuple((weights / embedding_scale).tolist()) if width else None,
        l2=l2,
    )


def fit_systems(design: Design, *, seed: int = 0) -> FloatArray:
    """(Y,) strengths of the systems alone, the prior chosen as for a calibration."""
    l2 = choose_l2(design.systems, design.label, design.groups, seed=seed)
    return fit_logistic(design.systems, design.label, l2)


def calibrate(
    battles: Battles,
    names: Sequence[str],
    *,
    embeddings: FloatArray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], PreferenceHead, Design]:
    """What `arena calibrate` writes to `metrics.json`, the preference head, and the features.

    Args:
        battles: read with the scores `names`.
        names: scores that get a slope each; a model can use the head if they are its heads.
        embeddings: (len(battles), 2, W) song embeddings of A and B, NaN where missing.
        bootstrap: bootstrap rounds of the intervals.
        seed: random seed of folds and bootstrap.

    Raises:
        DataError: no decided battle with every score, or a single prompt.
    """
    rounds = Rounds(bootstrap, seed)
    decided, dropped, notes = decided_battles(battles)
    vectors = np.zeros((len(battles), 2, 0)) if embeddings is None else embeddings
    vectors = vectors[battles.decided][np.argsort(battles.rank[battles.decided])]
    scored = np.all([np.isfinite(decided.difference(name)) for name in names], axis=0)
    embedded = np.isfinite(vectors).all(axis=(1, 2))
    dropped["missing_score"] = int((~scored).sum())
    if embeddings is not None:
        dropped["missing_embedding"] = int((scored & ~embedded).sum())
    kept = decided.select(scored & embedded)
    if len(kept) == 0:
        raise DataError(f"no decided battle has all of {', '.join(names)}: {dropped}")
    design = design_of(kept, names, vectors[scored & embedded])
    fitted = fit_calibration(design, seed=seed)
    held_out = _held_out(kept, design, rounds)
    result = {
        "n_battles": battles.n_read,
        "n_decided": len(decided),
        "dropped": dropped,
        "calibration": {
            "scores": list(names),
            **held_out,
            "slope": fitted.slopes,
            "bias": fitted.biases,
            "l2": fitted.l2,
            "grouped_by": "prompt" if kept.has_prompts else "battle",
            "folds": FOLDS,
            "verdict": _verdict(held_out),
        },
        "notes": notes,
        "settings": {"bootstrap": bootstrap, "seed": seed},
    }
    share = held_out["songs_only"]["overall"]["accuracy"]
    facts = {"battles": len(kept), "l2": fitted.l2, "held_out_accuracy": share}
    head = PreferenceHead(fitted.slopes, fitted.embedding_weights, facts)
    return dict(json_ready(result)), head, design


def _held_out(kept: Battles, design: Design, rounds: Rounds) -> dict[str, Any]:
    """Figures of the uncalibrated score and of every held-out log-odds, and McNemar's tests."""
    plain = design.uncalibrated()
    columns = {"uncalibrated": plain, **held_out_logits(design, rounds.seed)}
    logits = dict(columns)
    logits["uncalibrated"] = held_out_logit(
        plain[:, None], kept.a_won, kept.clusters, l2=SLOPE_L2, seed=rounds.seed
    )
    found: dict[str, Figures] = {}
    for name, difference in columns.items():
        found[name] = stratum_figures(kept, difference, rounds)
        found[name]["overall"] |= reliability(logits[name], kept.a_won)
    claim_directions(found.values())
    tests = {
        f"calibrated vs {other}": mcnemar(columns["calibrated"], columns[other], kept.a_won)
        for other in ("uncalibrated", "system_only")
        if other in columns
    }
    adds = None
    if "system_only" in found:
        calibrated, systems = (found[n]["overall"]["accuracy"] for n in COMPARED[1::2])
        p_value = tests["calibrated vs system_only"]["p_value"]
        adds = bool(calibrated > systems and p_value < LEVEL)
    return {**found, "mcnemar": tests, "adds_to_systems": adds}


def held_out_logits(design: Design, seed: int) -> dict[str, FloatArray]:
    """(N,) log-odds of every battle from fits without its group.

    `calibrated` (all of it), `songs_only` (its slopes and embedding weights without the biases),
    `system_only`.
    """
    names = COMPARED[1:] if design.system_names else COMPARED[1:3]
    logits = {name: np.empty(len(design.label)) for name in names}
    for train, test in group_folds(design.groups, FOLDS, seed):
        known, held_out = design.select(train), design.select(test)
        fitted = fit_calibration(known, seed=seed)
        logits["calibrated"][test] = fitted.logit(held_out)
        logits["songs_only"][test] = fitted.song_logit(held_out)
        if design.system_names:
            logits["system_only"][test] = held_out.systems @ fit_systems(known, seed=seed)
    return logits


def _verdict(held_out: Mapping[str, Any]) -> str:
    """What the held-out figures mean: is the gain the score's or the systems'?"""
    share = {name: held_out[name]["overall"]["accuracy"] for name in COMPARED if name in held_out}
    words = (
        f"Held out, the calibrated score is right on {share['calibrated']:.1%}, uncalibrated "
        f"{share['uncalibrated']:.1%}"
    )
    if "system_only" not in share:
        return words + ". No systems are named, so there is nothing to correct for."
    p_value = held_out["mcnemar"]["calibrated vs system_only"]["p_value"]
    words += f", the systems alone, without the score, {share['system_only']:.1%}. "
    if held_out["adds_to_systems"]:
        return words + (
            f"The score adds to what the systems alone tell (McNemar p = {p_value:.2g})."
        )
    return words + (
        f"These votes do not tell the calibrated score from the systems alone (McNemar p = "
        f"{p_value:.2g}): no sign that it knows more about songs than their systems."
    )


def learning_curve(
    design: Design, *, anchors: Sequence[int], test_size: int, repeats: int, seed: int = 0
) -> list[dict[str, Any]]:
    """How many anchor votes a calibration takes: a row per K of `anchors`.

    Per repeat, a seeded draw sets `test_size` battles aside; the first K of the shuffled rest are
    the anchors, so that a larger K adds votes to the smaller one's. Battles on a prompt of the test
    battles are never anchors. With K = 0 the calibrated score is the uncalibrated one and the
    systems alone get 0.5.

    Returns:
        `anchors`, and for `uncalibrated`, `calibrated`, `system_only` the mean `accuracy` on the
        test battles, its standard deviation `std` over the repeats, and the `repeats`.

    Raises:
        UsageError: more test battles and anchors than there are, or a negative number.
    """
    _check(len(design.label), anchors, test_size, repeats)
    draws = [_draw(design, test_size, seed, repeat) for repeat in range(repeats)]
    smallest = min(len(pool) for _, pool in draws)
    if max(anchors) > smallest:
        raise UsageError(
            f"{max(anchors)} anchors are more than the {smallest} battles on prompts that the "
            f"{test_size} test battles do not use; lower --anchors or --test-size"
        )
    rows: list[dict[str, Any]] = []
    for count in anchors:
        found = [
            _accuracies(design.select(pool[:count]), design.select(test), seed)
            for test, pool in draws
        ]
        row: dict[str, Any] = {"anchors": count}
        for name in found[0]:
            values = [accuracies[name] for accuracies in found]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            row[name] = {"accuracy": float(np.mean(values)), "std": spread, "repeats": values}
        rows.append(row)
    return rows


def _accuracies(anchors: Design, test: Design, seed: int) -> dict[str, float]:
    plain = test.uncalibrated()
    logits = {"uncalibrated": plain, "calibrated": plain, "system_only": np.zeros(len(plain))}
    if len(anchors.label):
        logits["calibrated"] = fit_calibration(anchors, seed=seed).logit(test)
        if anchors.system_names:
            logits["system_only"] = test.systems @ fit_systems(anchors, seed=seed)
    return {name: accuracy(logit, test.label > 0) for name, logit in logits.items()}


def _draw(design: Design, test_size: int, seed: int, repeat: int) -> tuple[IntArray, IntArray]:
    order = np.random.default_rng([seed, repeat]).permutation(len(design.label))
    test, rest = order[:test_size], order[test_size:]
    fresh = ~np.isin(design.groups[rest], design.groups[test])
    return test, rest[fresh]


def _check(n: int, anchors: Sequence[int], test_size: int, repeats: int) -> None:
    if not anchors or min(anchors) < 0:
        raise UsageError(f"anchors are {list(anchors)}; expected numbers of votes, as 0,10,100")
    if test_size < 1 or repeats < 1:
        raise UsageError(f"test size {test_size}, repeats {repeats}; expected at least 1 each")
    if test_size + max(anchors) > n:
        raise UsageError(
            f"{test_size} test battles and {max(anchors)} anchors need {test_size + max(anchors)} "
            f"battles with a decision and a score; there are {n}"
        )
