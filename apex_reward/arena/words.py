"""What the figures of `arena evaluate` mean, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from apex_reward.arena.figures import CLAIMS, DIRECTION_MIN, LEVEL
from apex_reward.report.document import Words

Metrics = Mapping[str, Any]


def findings(metrics: Metrics) -> list[Words]:
    """A sentence per fact about every score and about the votes."""
    found: list[Words] = []
    for name, strata in metrics["scores"].items():
        found += _direction(name, strata)
        if strata["overall"]["direction"] == "agrees":
            found += _beyond_systems(name, strata["overall"])
            found += _beyond_rulers(name, strata, metrics)
    return [*found, *_worse_than(metrics), *_groups(metrics)]


def _direction(name: str, strata: Metrics) -> Iterator[Words]:
    overall = strata["overall"]
    right = f"right on {overall['accuracy']:.1%} of {overall['n']} battles"
    if overall["auc"] is None:
        yield Words(f"{name}: one side won every battle, so its AUC is not defined.")
        return
    told = f"{right} (AUC {overall['auc']:.3f}, 95% interval {_between(overall['auc_ci95'])})"
    if overall["direction"] == "agrees":
        yield Words(f"{name} agrees with people: {told}.", "good")
    elif overall["direction"] == "opposes":
        yield Words(
            f"{name} points the wrong way: {told}. People prefer the side with the "
            "lower score; a generator trained towards it would move away from what they like. "
            "Calibrate it before use.",
            "warning",
        )
    else:
        yield Words(f"Not enough votes to tell whether {name} agrees with people: {told}.")
    verb = "agrees" if overall["direction"] == "agrees" else "is undetermined"
    for stratum in CLAIMS[1:]:
        entry = strata.get(stratum, overall)
        if entry["direction"] == "opposes" != overall["direction"]:
            yield Words(
                f"{name} points the wrong way on {stratum} battles (AUC {entry['auc']:.3f}, "
                f"{entry['n']} battles), though overall it {verb}.",
                "warning",
            )


def _between(interval: Any) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _beyond_systems(name: str, overall: Metrics) -> Iterator[Words]:
    """Whether a score that agrees with people knows songs, or only systems."""
    interval = overall.get("auc_within_system_pairs_ci95")
    if interval is None:
        return
    text = (
        f"Between songs of the same two systems {name} has an AUC of "
        f"{overall['auc_within_system_pairs']:.3f} (95% interval {_between(interval)})"
    )
    if interval[0] > 0.5:
        yield Words(f"{text}: it tells songs apart, not only systems.", "good")
    else:
        words = "its agreement may come from telling systems apart, not songs."
        yield Words(f"{text}: {words}", "warning")


def _beyond_rulers(name: str, strata: Metrics, metrics: Metrics) -> Iterator[Words]:
    """What is left of a score that agrees with people once the rulers are taken out."""
    rest = strata.get("after_rulers")
    if rest is None or rest["auc_ci95"] is None:
        return
    known = f"{name} knows, simple measures of a song know too, {metrics['best_ruler']} above all"
    left = f"(AUC {rest['auc']:.3f}, 95% interval {_between(rest['auc_ci95'])})."
    if rest["auc_ci95"][0] <= 0.5:
        words = "with the rulers taken out, nothing is left that these votes show"
        yield Words(f"What {known}: {words} {left}", "warning")
    elif rest["auc"] - 0.5 < 0.5 * (strata["overall"]["auc"] - 0.5):
        yield Words(
            f"Most of what {known}: with the rulers taken out, less than half is left {left}"
        )
    else:
        yield Words(f"{name} knows more than simple measures of a song {left}", "good")


def _worse_than(metrics: Metrics) -> Iterator[Words]:
    """One warning for all scores that are right on fewer battles than a plain rule."""
    accuracy = metrics["baselines"]["system_only"]["accuracy"] or 0.0
    systems = f"A rule that knows only the two systems' names is right on {accuracy:.1%}."
    ruler = f"The best ruler is {metrics.get('best_ruler')}."
    for key, other, words in (
        ("versus_systems", "the systems", systems),
        ("versus_best_ruler", "the ruler", ruler),
    ):
        behind = [
            f"{name} (right alone on {test['only_first']} battles, {other} on "
            f"{test['only_second']}, p = {test['p_value']:.2g})"
            for name, test in metrics.get(key, {}).items()
            if test["only_first"] < test["only_second"] and test["p_value"] < LEVEL
        ]
        if behind:
            yield Words(f"{words} Worse than that: {', '.join(behind)}.", "warning")


def by_entries(metrics: Metrics) -> Iterator[tuple[str, str, Metrics]]:
    """Column, score and entry of everything under `by`."""
    for column, part in metrics.get("by", {}).items():
        for name, entry in [(part["score"], part), *part.get("others", {}).items()]:
            yield column, name, entry


def _groups(metrics: Metrics) -> Iterator[Words]:
    """The largest gap of each column whose groups differ."""
    for column, name, entry in by_entries(metrics):
        if entry["p_value"] is None or entry["p_value"] >= LEVEL:
            continue
        large = {v: g for v, g in entry["groups"].items() if g["n"] >= DIRECTION_MIN}
        order = sorted(large, key=lambda value: large[value]["accuracy"])
        low, high = (f"{large[v]['accuracy']:.1%} for {v}" for v in (order[0], order[-1]))
        yield Words(
            f"{name} does not agree equally well with all values of {column}: right on "
            f"{high}, on {low} (p = {entry['p_value']:.2g}).",
            "warning",
        )
