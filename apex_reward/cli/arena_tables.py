"""What `apex-reward arena` prints: tables that fit into 80 columns, and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from apex_reward.cli.common import print_table

if TYPE_CHECKING:
    from apex_reward.arena.intervals import Interval
    from apex_reward.arena.results import AgreementResult, Figures, HeldOut


def print_evaluation(metrics: AgreementResult) -> None:
    """Figures, what was left out, Table 3 if there, and the findings in words."""
    from apex_reward.arena.findings import findings
    from apex_reward.arena.table3 import table3_grid
    from apex_reward.arena.voters import voter_words

    entries = {
        (name if stratum == "overall" else f"{name}, {stratum}"): entry
        for name, strata in metrics.scores.items()
        for stratum, entry in strata.items()
        if stratum in ("overall", "instrumental", "vocal")
    }
    entries["position a"] = metrics.baselines.position_a
    entries["system only"] = metrics.baselines.system_only
    _print_figures(f"{metrics.n_decided} decided of {metrics.n_battles} battles", entries)
    left_out = {reason: count for reason, count in metrics.dropped.items() if count}
    if left_out:
        print_table("left out", ("reason", "battles"), list(left_out.items()))
    if metrics.classifiers is not None:
        columns, cells = table3_grid(metrics.classifiers)
        # The F1 columns are in table3.md: five columns are what a terminal holds.
        print_table("Table 3, published / honest", columns[:5], [row[:5] for row in cells])
        typer.echo(metrics.classifiers.rules_line)
    words = [*voter_words(metrics.voters), *metrics.notes]
    _print_findings([*findings(metrics), *(("plain", text) for text in words)])


def _print_figures(title: str, entries: Mapping[str, Figures]) -> None:
    """A row per entry that fits into 80 columns; the p-values are in metrics.json."""
    rows = [
        [
            name,
            entry.n,
            _with_interval(entry.accuracy, entry.accuracy_ci95),
            _with_interval(entry.auc, entry.auc_ci95),
            entry.direction,
        ]
        for name, entry in entries.items()
    ]
    print_table(title, ("score", "n", "accuracy, 95%", "AUC, 95%", "direction"), rows)


def print_calibration(part: HeldOut) -> None:
    """Held-out figures, the fitted slopes and biases, the learning curve and the verdict."""
    entries = {name.replace("_", " "): found.overall for name, found in part.compared().items()}
    _print_figures(f"held out, folds by {part.grouped_by}", entries)
    for kind, weights in (("slope", part.slope), ("bias", part.bias)):
        if weights:
            print_table(f"{kind} in log-odds", ("of", kind), list(weights.items()))
    if part.learning_curve is not None:
        curve = [
            [row.anchors, *(point.accuracy for point in row.points().values())]
            for row in part.learning_curve
        ]
        names = tuple(part.learning_curve[0].points())
        print_table("mean accuracy over anchor votes", ("anchors", *names), curve)
    typer.echo(part.verdict)


def _print_findings(found: list[Any]) -> None:
    for tone, text in found:
        colour = {"good": "green", "warning": "yellow"}.get(tone)
        typer.secho(text, fg=colour)


def _with_interval(value: float | None, interval: Interval | None) -> str | None:
    """`0.537 .503-.569`, short enough for two in a row."""
    from apex_reward.arena.results import defined

    if value is None or math.isnan(value):
        return None
    found = defined(interval)
    if found is None:
        return f"{value:.3f}"
    low, high = (f"{bound:.3f}".replace("0.", ".", 1) for bound in found)
    return f"{value:.3f} {low}-{high}"
