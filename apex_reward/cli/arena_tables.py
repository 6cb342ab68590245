"""What `apex-reward arena` prints: tables that fit into 80 columns, and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from apex_reward.cli.common import print_table


def print_evaluation(metrics: dict[str, Any]) -> None:
    """Figures, what was left out, Table 3 if there, and the findings in words."""
    from apex_reward.arena.findings import findings
    from apex_reward.arena.table3 import table3_grid
    from apex_reward.arena.voters import voter_words

    entries = {
        (name if stratum == "overall" else f"{name}, {stratum}"): strata[stratum]
        for name, strata in metrics["scores"].items()
        for stratum in ("overall", "instrumental", "vocal")
        if stratum in strata
    }
    entries |= {name.replace("_", " "): entry for name, entry in metrics["baselines"].items()}
    title = f"{metrics['n_decided']} decided of {metrics['n_battles']} battles"
    _print_figures(title, entries)
    left_out = {reason: count for reason, count in metrics["dropped"].items() if count}
    if left_out:
        print_table("left out", ("reason", "battles"), list(left_out.items()))
    if "classifiers" in metrics:
        columns, cells = table3_grid(metrics["classifiers"])
        # The F1 columns are in table3.md: five columns are what a terminal holds.
        print_table("Table 3, published / honest", columns[:5], [row[:5] for row in cells])
        typer.echo(metrics["classifiers"]["rules_line"])
    words = [*voter_words(metrics["voters"]), *metrics["notes"]]
    _print_findings([*findings(metrics), *(("plain", text) for text in words)])


def _print_figures(title: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """A row per entry that fits into 80 columns; the p-values are in metrics.json."""
    rows = [
        [
            name,
            entry["n"],
            _with_interval(entry["accuracy"], entry["accuracy_ci95"]),
            _with_interval(entry.get("auc"), entry.get("auc_ci95")),
            entry.get("direction"),
        ]
        for name, entry in entries.items()
    ]
    print_table(title, ("score", "n", "accuracy, 95%", "AUC, 95%", "direction"), rows)


def print_calibration(part: dict[str, Any]) -> None:
    """Held-out figures, the fitted slopes and biases, the learning curve and the verdict."""
    from apex_reward.arena.report import CALIBRATED

    names = [name for name in CALIBRATED if name in part]
    entries = {name.replace("_", " "): part[name]["overall"] for name in names}
    _print_figures(f"held out, folds by {part['grouped_by']}", entries)
    for kind in ("slope", "bias"):
        if part[kind]:
            print_table(f"{kind} in log-odds", ("of", kind), list(part[kind].items()))
    if "learning_curve" in part:
        shown = [name for name in names if name in part["learning_curve"][0]]
        curve = [
            [row["anchors"], *(row[name]["accuracy"] for name in shown)]
            for row in part["learning_curve"]
        ]
        print_table("mean accuracy over anchor votes", ("anchors", *shown), curve)
    typer.echo(part["verdict"])


def _print_findings(found: list[Any]) -> None:
    for tone, text in found:
        colour = {"good": "green", "warning": "yellow"}.get(tone)
        typer.secho(text, fg=colour)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str | None:
    """`0.537 .503-.569`, short enough for two in a row."""
    if value is None or interval is None:
        return None if value is None else f"{value:.3f}"
    low, high = (f"{bound:.3f}".replace("0.", ".", 1) for bound in interval)
    return f"{value:.3f} {low}-{high}"
