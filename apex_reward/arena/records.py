"""Figures as the cells of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apex_reward.arena.intervals import Interval
from apex_reward.arena.results import AgreementResult, Figures, defined

FIGURE_COLUMNS = ("n", "accuracy", "95%", "AUC", "AUC 95%", "direction", "p")


def score_summary(metrics: AgreementResult, names: Sequence[str] | None = None) -> list[list[Any]]:
    """Rows `score, stratum, n, accuracy, its interval, AUC, its interval, direction, p`."""
    rows = []
    for name, by_stratum in metrics.scores.items():
        for stratum, entry in by_stratum.items():
            if names is None or stratum in names:
                rows.append([name, stratum, *figure_cells(entry)])
    return rows


def figure_cells(entry: Figures) -> list[Any]:
    """n, accuracy, interval, AUC, interval, direction, p-value of figures, for a table."""
    return [
        entry.n,
        entry.accuracy,
        interval_text(entry.accuracy_ci95),
        entry.auc,
        interval_text(entry.auc_ci95),
        entry.direction,
        entry.p_value,
    ]


def interval_text(interval: Interval | None) -> str | None:
    """`[0.512, 0.561]`, or None where there is no interval."""
    found = defined(interval)
    return None if found is None else f"[{found[0]:.3f}, {found[1]:.3f}]"
