"""What the figures of `arena evaluate` mean, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apex_reward.arena.figures import CLAIMS, LEVEL
from apex_reward.report.document import Words

POSITION_LEVEL = 0.01
"""Largest p at which a preference for a position is stated."""


def findings(metrics: Mapping[str, Any]) -> list[Words]:
    """A sentence per fact about every score and about the votes."""
    found = []
    for name, strata in metrics["scores"].items():
        overall = strata["overall"]
        found.append(_direction(name, overall))
        found += [
            _stratum_warning(name, stratum, strata[stratum], overall)
            for stratum in CLAIMS[1:]
            if strata.get(stratum, overall)["direction"] == "opposes" != overall["direction"]
        ]
        found += _within_systems(name, overall)
        found += _after_rulers(name, strata, metrics)
    found += _worse_than(metrics, "versus_systems", "the systems", _systems_words(metrics))
    found += _worse_than(metrics, "versus_best_ruler", "the ruler", _ruler_words(metrics))
    found += _groups(metrics)
    return found + _position(metrics["baselines"]["position_a"])


def _direction(name: str, entry: Mapping[str, Any]) -> Words:
    right = f"right on {entry['accuracy']:.1%} of {entry['n']} battles"
    if entry["auc"] is None:
        return Words(f"{name}: one side won every battle, so its AUC is not defined.")
    area = f"AUC {entry['auc']:.3f}, 95% interval {_between(entry['auc_ci95'])}"
    if entry["direction"] == "agrees":
        return Words(f"{name} agrees with people: {right} ({area}).", "good")
    if entry["direction"] == "opposes":
        return Words(
            f"{name} points the wrong way: {right} ({area}). People prefer the side with the "
            "lower score; a generator trained towards it would move away from what they like. "
            "Calibrate it before use.",
            "warning",
        )
    return Words(f"Not enough votes to tell whether {name} agrees with people: {right} ({area}).")


def _between(interval: Any) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _stratum_warning(
    name: str, stratum: str, entry: Mapping[str, Any], overall: Mapping[str, Any]
) -> Words:
    verb = "agrees" if overall["direction"] == "agrees" else "is undetermined"
    return Words(
        f"{name} points the wrong way on {stratum} battles (AUC {entry['auc']:.3f}, "
        f"{entry['n']} battles), though overall it {verb}.",
        "warning",
    )


def _within_systems(name: str, overall: Mapping[str, Any]) -> list[Words]:
    interval = overall.get("auc_within_system_pairs_ci95")
    if interval is None or overall["direction"] != "agrees":
        return []
    text = (
        f"Between songs of the same two systems {name} has an AUC of "
        f"{overall['auc_within_system_pairs']:.3f} (95% interval {_between(interval)})"
    )
    if interval[0] > 0.5:
        return [Words(f"{text}: it tells songs apart, not only systems.", "good")]
    words = "its agreement may come from telling systems apart, not songs."
    return [Words(f"{text}: {words}", "warning")]


def _after_rulers(name: str, strata: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Words]:
    """What is left of a score that agrees with people once the rulers are taken out."""
    rest, overall = strata.get("after_rulers"), strata["overall"]
    if rest is None or rest["auc_ci95"] is None or overall["direction"] != "agrees":
        return []
    best = metrics["best_ruler"]
    left = f"AUC {rest['auc']:.3f}, 95% interval {_between(rest['auc_ci95'])}"
    if rest["auc_ci95"][0] <= 0.5:
        return [
            Words(
                f"What {name} knows, simple measures of a song know too, {best} above all: with "
                f"the rulers taken out, nothing is left that these votes show ({left}).",
                "warning",
            )
        ]
    share = (rest["auc"] - 0.5) / (overall["auc"] - 0.5)
    if share < 0.5:
        text = f"Most of what {name} knows, simple measures of a song know too, {best} above all"
        return [Words(f"{text}: with the rulers taken out, less than half is left ({left}).")]
    return [Words(f"{name} knows more than simple measures of a song ({left}).", "good")]


def _systems_words(metrics: Mapping[str, Any]) -> str:
    accuracy = metrics["baselines"]["system_only"]["accuracy"]
    share = "" if accuracy is None else f"{accuracy:.1%}"
    return f"A rule that knows only the two systems' names is right on {share}."


def _ruler_words(metrics: Mapping[str, Any]) -> str:
    return f"The best ruler is {metrics.get('best_ruler')}."


def _worse_than(metrics: Mapping[str, Any], key: str, other: str, words: str) -> list[Words]:
    """One warning for all scores that are right on fewer battles than a plain rule."""
    behind = [
        f"{name} (right alone on {test['only_first']} battles, {other} on "
        f"{test['only_second']}, p = {test['p_value']:.2g})"
        for name, test in metrics.get(key, {}).items()
        if test["only_first"] < test["only_second"] and test["p_value"] < LEVEL
    ]
    return [Words(f"{words} Worse than that: {', '.join(behind)}.", "warning")] if behind else []


def by_entries(metrics: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Column, score and entry of everything under `by`."""
    return [
        (column, name, entry)
        for column, part in metrics.get("by", {}).items()
        for name, entry in [(part["score"], part), *part.get("others", {}).items()]
    ]


def _groups(metrics: Mapping[str, Any]) -> list[Words]:
    """The largest gap of each column whose groups differ."""
    found = []
    for column, name, entry in by_entries(metrics):
        if entry["p_value"] is None or entry["p_value"] >= LEVEL:
            continue
        large = {v: g["accuracy"] for v, g in entry["groups"].items() if g["n"] >= 10}
        low, high = min(large, key=large.__getitem__), max(large, key=large.__getitem__)
        found.append(
            Words(
                f"{name} does not agree equally well with all values of {column}: right on "
                f"{large[high]:.1%} for {high}, on {large[low]:.1%} for {low} "
                f"(p = {entry['p_value']:.2g}).",
                "warning",
            )
        )
    return found


def _position(entry: Mapping[str, Any]) -> list[Words]:
    if entry["p_value"] >= POSITION_LEVEL:
        return []
    return [
        Words(
            f"A won {entry['accuracy']:.1%} of the battles (95% interval "
            f"{entry['accuracy_ci95'][0]:.1%} to {entry['accuracy_ci95'][1]:.1%}): voters prefer "
            "one position, which a model that is not antisymmetric can learn.",
            "warning",
        )
    ]
