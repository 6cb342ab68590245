"""Calibration: P(A wins) = sigmoid(slope * (a - b) + bias[system_a] - bias[system_b]).

Antisymmetric by construction: everything is a difference and there is no constant. Several scores
have a slope each, and with song embeddings there is a weight for each dimension. One Gaussian prior
(L2) holds all coefficients; features are scaled to unit mean square, the embedding as a whole to
the size of one feature. Its strength is chosen in inner folds, and the figures are of outer folds;
both keep a prompt together where prompts are named. Biases that explain all of the gain are about
systems, not songs, and the verdict states it.

Shape key: N = battles, M = scores, W = embedding width, Y = systems, P = M + W + Y.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from apex_reward.arena import figures, heldout
from apex_reward.arena.agreement import system_features
from apex_reward.arena.battles import Battles
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import json_ready
from apex_reward.metrics import FloatArray, IntArray, accuracy
from apex_reward.scores.mix import RewardMix

COMPARED = ("uncalibrated", "calibrated", "songs_only", "system_only")


@dataclass(frozen=True)
class Design:
    """Features of decided battles, all differences of A and B.

    Attributes:
        features: (N, P): scores, embeddings, and +1 for A's system, -1 for B's.
        label: (N,) 1 where A won.
        groups: (N,) prompt of each battle, or the battle itself.
    """

    names: tuple[str, ...]
    system_names: tuple[str, ...]
    features: FloatArray
    label: FloatArray
    groups: IntArray

    @property
    def songs(self) -> int:
        """M + W, the number of features of the songs."""
        return self.features.shape[1] - len(self.system_names)

    def select(self, rows: IntArray) -> Design:
        """The battles of some rows."""
        features, label, groups = self.features[rows], self.label[rows], self.groups[rows]
        return replace(self, features=features, label=label, groups=groups)

    def uncalibrated(self) -> FloatArray:
        """(N,) the score difference itself; of several, the sum of differences of one size."""
        scores = self.features[:, : len(self.names)]
        scale = heldout.root_mean_square(scores) if len(self.names) > 1 else 1.0
        return np.asarray((scores / scale).sum(axis=1))


@dataclass(frozen=True)
class Calibration:
    """(P,) coefficients of a design in log-odds per unit, and the strength of their prior."""

    design: Design
    coefficients: FloatArray
    l2: float

    @property
    def slopes(self) -> dict[str, float]:
        """Score name -> log-odds per unit of its difference."""
        return dict(zip(self.design.names, self.coefficients.tolist(), strict=False))

    @property
    def biases(self) -> dict[str, float]:
        """System -> log-odds; they sum to zero, as their features do. 0 for an unseen one."""
        found = self.coefficients[self.design.songs :].tolist()
        return dict(zip(self.design.system_names, found, strict=True))

    @property
    def embedding_weights(self) -> tuple[float, ...] | None:
        """(W,) weights, or None without embeddings."""
        return tuple(self.coefficients[len(self.slopes) : self.design.songs].tolist()) or None

    def song_logit(self, design: Design) -> FloatArray:
        """(N,) log-odds from the songs alone: scores and embeddings."""
        songs = design.songs
        return np.asarray(design.features[:, :songs] @ self.coefficients[:songs])

    def logit(self, design: Design) -> FloatArray:
        """(N,) log-odds that A wins, the systems included."""
        return np.asarray(design.features @ self.coefficients)


def design_of(
    decided: Battles, names: Sequence[str], embeddings: FloatArray | None = None
) -> Design:
    """Features of decided battles that have every score; `embeddings` is (N, 2, W) of A and B."""
    systems, system_names = system_features(decided)
    scores = np.stack([decided.difference(name) for name in names], axis=1)
    vectors = np.zeros((len(decided), 2, 0)) if embeddings is None else embeddings
    features = np.hstack([scores, vectors[:, 0] - vectors[:, 1], systems])
    label = decided.a_won.astype(np.float64)
    return Design(tuple(names), tuple(system_names), features, label, decided.clusters)


def fit_calibration(design: Design, *, l2: float | None = None, seed: int = 0) -> Calibration:
    """Fit slopes, biases and embedding weights together; `l2` None: chosen in grouped folds."""
    scores, songs = len(design.names), design.songs
    scale = heldout.root_mean_square(design.features)
    scale[scores:songs] *= math.sqrt(max(songs - scores, 1))
    scale[songs:] = 1.0
    features = design.features / scale
    if l2 is None:
        l2 = heldout.choose_l2(features, design.label, design.groups, seed=seed)
    return Calibration(design, heldout.fit_logistic(features, design.label, l2) / scale, l2)


def system_logit(anchors: Design, test: Design, seed: int) -> FloatArray:
    """(N,) log-odds of `test` by the systems alone, the prior chosen as for a calibration."""
    known = anchors.features[:, anchors.songs :]
    l2 = heldout.choose_l2(known, anchors.label, anchors.groups, seed=seed)
    strengths = heldout.fit_logistic(known, anchors.label, l2)
    return np.asarray(test.features[:, test.songs :] @ strengths)


def calibrate(
    battles: Battles,
    names: Sequence[str],
    *,
    embeddings: FloatArray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], RewardMix, Design]:
    """What `arena calibrate` writes to `metrics.json`, the preference head, and the features.

    Args:
        battles: read with the scores `names`.
        names: scores that get a slope each; a model can use the head if they are its heads.
        embeddings: (len(battles), 2, W) song embeddings of A and B, NaN where missing, infinite
            where unreadable.
        bootstrap: bootstrap rounds of the intervals.
        seed: random seed of folds and bootstrap.

    Raises:
        DataError: no decided battle with every score, or a single prompt.
    """
    decided, dropped, notes = figures.decided_battles(battles)
    vectors = np.zeros((len(battles), 2, 0)) if embeddings is None else embeddings
    vectors = vectors[battles.decided][np.argsort(battles.rank[battles.decided])]
    scored = np.all([np.isfinite(decided.difference(name)) for name in names], axis=0)
    embedded = np.isfinite(vectors).all(axis=(1, 2))
    unreadable = np.where(scored, np.isinf(vectors).any(axis=(1, 2)), decided.unreadable)
    dropped["unreadable"] = dropped.get("unreadable", 0) + int(unreadable.sum())
    dropped["missing_score"] = int((~scored & ~unreadable).sum())
    if embeddings is not None:
        dropped["missing_embedding"] = int((scored & ~embedded & ~unreadable).sum())
    kept = decided.select(scored & embedded)
    if len(kept) == 0:
        raise DataError(f"no decided battle has all of {', '.join(names)}: {dropped}")
    design = design_of(kept, names, vectors[scored & embedded])
    fitted = fit_calibration(design, seed=seed)
    held_out = _held_out(kept, design, figures.Rounds(bootstrap, seed))
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
            "folds": heldout.FOLDS,
            "verdict": _verdict(held_out),
        },
        "notes": notes,
        "settings": {"bootstrap": bootstrap, "seed": seed},
    }
    share = held_out["songs_only"]["overall"]["accuracy"]
    facts = {"battles": len(kept), "l2": fitted.l2, "held_out_accuracy": share}
    head = RewardMix(fitted.slopes, "none", None, fitted.embedding_weights, facts)
    return dict(json_ready(result)), head, design


def _held_out(kept: Battles, design: Design, rounds: figures.Rounds) -> dict[str, Any]:
    """Figures of the uncalibrated score and of every held-out log-odds, and McNemar's tests."""
    names = COMPARED if design.system_names else COMPARED[:3]
    columns = {name: np.empty(len(kept)) for name in names}
    columns["uncalibrated"] = design.uncalibrated()
    for train, test in heldout.group_folds(design.groups, heldout.FOLDS, rounds.seed):
        known, others = design.select(train), design.select(test)
        fitted = fit_calibration(known, seed=rounds.seed)
        columns["calibrated"][test] = fitted.logit(others)
        columns["songs_only"][test] = fitted.song_logit(others)
        if design.system_names:
            columns["system_only"][test] = system_logit(known, others, rounds.seed)
    logits = columns | {
        "uncalibrated": heldout.held_out_logit(
            columns["uncalibrated"][:, None],
            kept.a_won,
            kept.clusters,
            l2=heldout.SLOPE_L2,
            seed=rounds.seed,
        )
    }
    found: dict[str, figures.Figures] = {}
    for name, difference in columns.items():
        found[name] = figures.stratum_figures(kept, difference, rounds)
        found[name]["overall"] |= heldout.reliability(logits[name], kept.a_won)
    figures.claim_directions(found.values())
    tests = {
        f"calibrated vs {other}": figures.mcnemar(columns["calibrated"], columns[other], kept.a_won)
        for other in ("uncalibrated", "system_only")
        if other in columns
    }
    adds = None
    if design.system_names:
        calibrated, systems = (found[n]["overall"]["accuracy"] for n in COMPARED[1::2])
        adds = bool(
            calibrated > systems and tests["calibrated vs system_only"]["p_value"] < figures.LEVEL
        )
    return {**found, "mcnemar": tests, "adds_to_systems": adds}


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
        return f"{words}The score adds to what the systems alone tell (McNemar p = {p_value:.2g})."
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
    if not anchors or min(anchors) < 0:
        raise UsageError(f"anchors are {list(anchors)}; expected numbers of votes, as 0,10,100")
    draws = []
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(design.label))
        test, rest = order[:test_size], order[test_size:]
        draws.append((test, rest[~np.isin(design.groups[rest], design.groups[test])]))
    smallest = min(len(pool) for _, pool in draws)
    if max(anchors) > smallest or test_size > len(design.label):
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
        rows.append({"anchors": count})
        for name in found[0]:
            values = [accuracies[name] for accuracies in found]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            mean = float(np.mean(values))
            rows[-1][name] = {"accuracy": mean, "std": spread, "repeats": values}
    return rows


def _accuracies(anchors: Design, test: Design, seed: int) -> dict[str, float]:
    plain = test.uncalibrated()
    logits = {"uncalibrated": plain, "calibrated": plain, "system_only": np.zeros(len(plain))}
    if len(anchors.label):
        logits["calibrated"] = fit_calibration(anchors, seed=seed).logit(test)
        logits["system_only"] = system_logit(anchors, test, seed)
    return {name: accuracy(logit, test.label > 0) for name, logit in logits.items()}
