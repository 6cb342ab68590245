"""What the figures of `arena evaluate` say, in words: direction, systems, position."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Tone = Literal["good", "plain", "warning"]
_MAIN = ("overall", "instrumental", "vocal")


class Finding(NamedTuple):
    """A sentence and whether it warns."""

    tone: Tone
    text: str


def findings(metrics: dict[str, Any]) -> list[Finding]:
    """Sentences about every score and about the votes, the ones on a score together."""
    found = []
    systems = metrics["baselines"]["system_only"]
    for name, strata in metrics["scores"].items():
        overall = strata["overall"]
        found.append(_direction(name, overall))
        found += [
            _stratum_warning(name, stratum, strata[stratum], overall)
            for stratum in _MAIN[1:]
            if stratum in strata and _differs(strata[stratum], overall)
        ]
        found += _within_systems(name, overall)
    found += _systems(metrics["scores"], systems)
    found += _position(metrics["baselines"]["position_a"])
    return found


def _direction(name: str, entry: dict[str, Any]) -> Finding:
    accuracy = f"right on {entry['accuracy']:.1%} of {entry['n']} battles"
    if entry["auc"] is None:
        return Finding("plain", f"{name}: one side won every battle, so its AUC is not defined.")
    auc = f"AUC {entry['auc']:.3f}"
    if entry["auc_ci95"] is not None:
        low, high = entry["auc_ci95"]
        auc += f", 95% interval {low:.3f} to {high:.3f}"
    if entry["direction"] == "agrees":
        return Finding("good", f"{name} agrees with people: {accuracy} ({auc}).")
    if entry["direction"] == "opposes":
        return Finding(
            "warning",
            f"{name} points the wrong way: {accuracy} ({auc}). People prefer the side with the "
            "lower score; a generator trained towards it would move away from what they like. "
            "Calibrate it before use.",
        )
    return Finding(
        "plain", f"These battles do not tell whether {name} agrees with people: {accuracy} ({auc})."
    )


def _differs(entry: dict[str, Any], overall: dict[str, Any]) -> bool:
    return entry["direction"] == "opposes" and overall["direction"] != "opposes"


def _stratum_warning(
    name: str, stratum: str, entry: dict[str, Any], overall: dict[str, Any]
) -> Finding:
    return Finding(
        "warning",
        f"{name} points the wrong way on {stratum} battles (AUC {entry['auc']:.3f}, "
        f"{entry['n']} battles), though overall it {_verb(overall['direction'])}.",
    )


def _verb(direction: str) -> str:
    return "agrees" if direction == "agrees" else "is undetermined"


def _within_systems(name: str, overall: dict[str, Any]) -> list[Finding]:
    within = overall.get("auc_within_system_pairs")
    interval = overall.get("auc_within_system_pairs_ci95")
    if within is None or interval is None or overall["direction"] != "agrees":
        return []
    text = (
        f"Between songs of the same two systems {name} has an AUC of {within:.3f} "
        f"(95% interval {interval[0]:.3f} to {interval[1]:.3f})"
    )
    if interval[0] > 0.5:
        return [Finding("good", f"{text}: it tells songs apart, not only systems.")]
    words = "its agreement may come from telling systems apart, not songs."
    return [Finding("warning", f"{text}: {words}")]


def _systems(scores: dict[str, Any], systems: dict[str, Any]) -> list[Finding]:
    """One warning for all scores that are no better than the systems' names."""
    if systems["accuracy"] is None or systems["accuracy"] <= 0.5:
        return []
    behind = [
        f"{name} {strata['overall']['accuracy']:.1%}"
        for name, strata in scores.items()
        if strata["overall"]["accuracy"] <= systems["accuracy"]
    ]
    if not behind:
        return []
    return [
        Finding(
            "warning",
            f"Knowing only which systems made the two songs is right on "
            f"{systems['accuracy']:.1%}. No better than that: {', '.join(behind)}.",
        )
    ]


def _position(entry: dict[str, Any]) -> list[Finding]:
    if entry["accuracy_ci95"] is None:
        return []
    low, high = entry["accuracy_ci95"]
    if low <= 0.5 <= high:
        return []
    return [
        Finding(
            "warning",
            f"A won {entry['accuracy']:.1%} of the battles (95% interval {low:.1%} to {high:.1%}): "
            "voters lean to one position, which a model that is not antisymmetric can learn.",
        )
    ]
