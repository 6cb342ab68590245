"""What the figures of `arena evaluate` say, in words: direction, systems, position."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from apex_reward.arena.results import AgreementResult, Figures, Overall, defined

Tone = Literal["good", "plain", "warning"]
_MAIN = ("instrumental", "vocal")
_LEVEL = 0.05


class Finding(NamedTuple):
    """A sentence and whether it warns."""

    tone: Tone
    text: str


def findings(metrics: AgreementResult) -> list[Finding]:
    """Sentences about every score and about the votes, the ones on a score together."""
    found = []
    for name, strata in metrics.scores.items():
        overall = strata.overall
        found.append(_direction(name, overall))
        found += [
            _stratum_warning(name, stratum, strata.others[stratum], overall)
            for stratum in _MAIN
            if stratum in strata.others and _differs(strata.others[stratum], overall)
        ]
        found += _within_systems(name, overall)
    found += _systems(metrics)
    found += _position(metrics.baselines.position_a)
    return found


def _direction(name: str, entry: Figures) -> Finding:
    accuracy = f"right on {entry.accuracy:.1%} of {entry.n} battles"
    if entry.auc is None or math.isnan(entry.auc):
        return Finding("plain", f"{name}: one side won every battle, so its AUC is not defined.")
    auc = f"AUC {entry.auc:.3f}"
    if interval := defined(entry.auc_ci95):
        auc += f", 95% interval {interval[0]:.3f} to {interval[1]:.3f}"
    if entry.direction == "agrees":
        return Finding("good", f"{name} agrees with people: {accuracy} ({auc}).")
    if entry.direction == "opposes":
        return Finding(
            "warning",
            f"{name} points the wrong way: {accuracy} ({auc}). People prefer the side with the "
            "lower score; a generator trained towards it would move away from what they like. "
            "Calibrate it before use.",
        )
    return Finding(
        "plain", f"These battles do not tell whether {name} agrees with people: {accuracy} ({auc})."
    )


def _differs(entry: Figures, overall: Figures) -> bool:
    return entry.direction == "opposes" and overall.direction != "opposes"


def _stratum_warning(name: str, stratum: str, entry: Figures, overall: Figures) -> Finding:
    verb = "agrees" if overall.direction == "agrees" else "is undetermined"
    return Finding(
        "warning",
        f"{name} points the wrong way on {stratum} battles (AUC {entry.auc:.3f}, "
        f"{entry.n} battles), though overall it {verb}.",
    )


def _within_systems(name: str, overall: Overall) -> list[Finding]:
    within = overall.auc_within_system_pairs
    interval = defined(overall.auc_within_system_pairs_ci95)
    if within is None or interval is None or overall.direction != "agrees":
        return []
    text = (
        f"Between songs of the same two systems {name} has an AUC of {within:.3f} "
        f"(95% interval {interval[0]:.3f} to {interval[1]:.3f})"
    )
    if interval[0] > 0.5:
        return [Finding("good", f"{text}: it tells songs apart, not only systems.")]
    words = "its agreement may come from telling systems apart, not songs."
    return [Finding("warning", f"{text}: {words}")]


def _systems(metrics: AgreementResult) -> list[Finding]:
    """One warning for all scores that the systems' names alone beat, battle by battle."""
    systems = metrics.baselines.system_only
    behind = [
        f"{name} (right alone on {test.only_first} battles, the systems on {test.only_second}, "
        f"p = {test.p_value:.2g})"
        for name, test in metrics.versus_systems.items()
        if test.only_first < test.only_second and test.p_value < _LEVEL
    ]
    if not behind:
        return []
    return [
        Finding(
            "warning",
            f"Knowing only which systems made the two songs is right on {systems.accuracy:.1%}. "
            f"Worse than that: {', '.join(behind)}.",
        )
    ]


def _position(entry: Figures) -> list[Finding]:
    interval = defined(entry.accuracy_ci95)
    if interval is None or interval[0] <= 0.5 <= interval[1]:
        return []
    low, high = interval
    return [
        Finding(
            "warning",
            f"A won {entry.accuracy:.1%} of the battles (95% interval {low:.1%} to {high:.1%}): "
            "voters lean to one position, which a model that is not antisymmetric can learn.",
        )
    ]
