"""What calibration gains on held-out votes, beside the uncalibrated score and the systems alone.

The prior's strength is chosen in inner folds and judged in outer ones; both keep a prompt together
where prompts are given. Biases that do all the work say something about systems, nothing about
songs, and the verdict says so.

Shape key: N = battles, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit

from apex_reward.arena.agreement import (
    decided_battles,
    mcnemar_of,
    stratum_figures,
    with_reliability,
)
from apex_reward.arena.battles import Battles
from apex_reward.arena.calibration import (
    Calibration,
    Design,
    design_of,
    fit_calibration,
    fit_systems,
)
from apex_reward.arena.logistic import group_folds, splits
from apex_reward.arena.reliability import (
    SLOPE_L2,
    held_out_probability,
    reliability,
    root_mean_square,
)
from apex_reward.arena.results import (
    ArenaSettings,
    CalibrationResult,
    HeldOut,
    McNemar,
    Strata,
)
from apex_reward.errors import DataError
from apex_reward.metrics import FloatArray
from apex_reward.scores.preference import PreferenceHead

OUTER_FOLDS = 10


def calibrate(
    battles: Battles,
    names: Sequence[str],
    *,
    embeddings: FloatArray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[CalibrationResult, PreferenceHead, Design]:
    """What `arena calibrate` finds, the preference head, and the features.

    Args:
        battles: read with the scores `names`.
        names: scores that get a slope each; names of heads make the head fit for a model.
        embeddings: (len(battles), 2, W) song embeddings of A and B, NaN where missing.
        bootstrap: bootstrap rounds of the intervals.
        seed: of folds and bootstrap.

    Raises:
        DataError: no decided battle with every score, or a single prompt.
    """
    decided, dropped, notes = decided_battles(battles)
    vectors = None if embeddings is None else embeddings[battles.decided]
    kept, vectors, missing = _complete(decided, names, vectors)
    dropped.update(missing)
    if len(kept) == 0:
        raise DataError(f"no decided battle has all of {', '.join(names)}: {dropped}")
    design = design_of(kept, names, vectors)
    fitted = fit_calibration(design, seed=seed)
    figures, tests = _held_out_figures(kept, design, bootstrap=bootstrap, seed=seed)
    adds = adds_to_systems(figures, tests)
    result = CalibrationResult(
        n_battles=battles.n_read,
        n_decided=len(decided),
        dropped=dropped,
        calibration=HeldOut(
            scores=tuple(names),
            uncalibrated=figures["uncalibrated"],
            calibrated=figures["calibrated"],
            songs_only=figures["songs_only"],
            system_only=figures.get("system_only"),
            mcnemar=tests,
            slope=fitted.slopes,
            bias=fitted.biases,
            l2=fitted.l2,
            grouped_by="prompt" if kept.has_prompts else "battle",
            folds=OUTER_FOLDS,
            adds_to_systems=adds,
            verdict=verdict(figures, tests, adds),
        ),
        notes=tuple(notes),
        settings=ArenaSettings(bootstrap, seed),
    )
    accuracy = figures["songs_only"].overall.accuracy
    return result, _preference(fitted, len(kept), accuracy), design


def held_out_logits(design: Design, seed: int) -> dict[str, FloatArray]:
    """(N,) log-odds of every battle from fits without its group.

    `calibrated` (all of it), `songs_only` (its slopes and embedding weights without the biases),
    `system_only`.
    """
    logits = {key: np.empty(len(design.label)) for key in ("calibrated", "songs_only")}
    if design.system_names:
        logits["system_only"] = np.empty(len(design.label))
    for train, test in splits(group_folds(design.groups, OUTER_FOLDS, seed)):
        known, held_out = design.select(train), design.select(test)
        fitted = fit_calibration(known, seed=seed)
        logits["calibrated"][test] = fitted.logit(held_out)
        logits["songs_only"][test] = fitted.song_logit(held_out)
        if design.system_names:
            logits["system_only"][test] = held_out.systems @ fit_systems(known, seed=seed)
    return logits


def adds_to_systems(figures: Mapping[str, Strata], tests: Mapping[str, McNemar]) -> bool | None:
    """Whether the calibrated score is better than the systems alone (McNemar, 5%); None without."""
    if "system_only" not in figures:
        return None
    calibrated, systems = (figures[name].overall for name in ("calibrated", "system_only"))
    better = calibrated.accuracy > systems.accuracy
    return better and tests["calibrated vs system_only"].p_value < 0.05


def verdict(figures: Mapping[str, Strata], tests: Mapping[str, McNemar], adds: bool | None) -> str:
    """What the held-out figures say, in words: is the gain the score's or the systems'?"""
    calibrated = figures["calibrated"].overall.accuracy
    plain = figures["uncalibrated"].overall.accuracy
    words = f"Held out, the calibrated score is right on {calibrated:.1%}, uncalibrated {plain:.1%}"
    if adds is None:
        return words + ". No systems are named, so there is nothing to correct for."
    systems = figures["system_only"].overall.accuracy
    p_value = tests["calibrated vs system_only"].p_value
    words += f", the systems alone, without the score, {systems:.1%}"
    if adds:
        return (
            f"{words}. The score adds to what the systems alone tell (McNemar p = {p_value:.2g})."
        )
    return (
        f"{words}. These votes do not tell the calibrated score from the systems alone (McNemar p "
        f"= {p_value:.2g}): nothing here shows that it knows more about songs than their systems."
    )


def _complete(
    decided: Battles, names: Sequence[str], vectors: FloatArray | None
) -> tuple[Battles, FloatArray | None, dict[str, int]]:
    """The battles that have every score and, where given, both embeddings; and counts of others."""
    differences = np.stack([decided.difference(name) for name in names], axis=1)
    scored = np.isfinite(differences).all(axis=1)
    missing = {"missing_score": int((~scored).sum())}
    if vectors is None:
        return decided.select(np.flatnonzero(scored)), None, missing
    embedded = np.isfinite(vectors).all(axis=(1, 2))
    missing["missing_embedding"] = int((scored & ~embedded).sum())
    rows = np.flatnonzero(scored & embedded)
    return decided.select(rows), vectors[rows], missing


def _held_out_figures(
    kept: Battles, design: Design, *, bootstrap: int, seed: int
) -> tuple[dict[str, Strata], dict[str, McNemar]]:
    """Figures of the uncalibrated score and of every held-out log-odds, and McNemar's tests."""
    plain = design.uncalibrated(root_mean_square(design.scores))
    logits = held_out_logits(design, seed)
    columns = {"uncalibrated": plain, **logits}
    probability = {name: expit(logit) for name, logit in logits.items()}
    probability["uncalibrated"] = held_out_probability(
        plain[:, None], kept.a_won, kept.clusters, l2=SLOPE_L2, seed=seed
    )
    figures = {}
    for name, difference in columns.items():
        found = stratum_figures(kept, difference, bootstrap=bootstrap, seed=seed)
        curve = reliability(probability[name], kept.a_won)
        figures[name] = replace(found, overall=with_reliability(found.overall, curve))
    tests = {
        f"calibrated vs {other}": mcnemar_of(logits["calibrated"], columns[other], kept.a_won)
        for other in ("uncalibrated", "system_only")
        if other in columns
    }
    return figures, tests


def _preference(fitted: Calibration, battles: int, accuracy: float) -> PreferenceHead:
    facts = {"battles": battles, "l2": fitted.l2, "held_out_accuracy": accuracy}
    return PreferenceHead(fitted.slopes, fitted.embedding_weights, facts)
