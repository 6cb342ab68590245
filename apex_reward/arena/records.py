"""Figures as JSON values and as the cells of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

FIGURE_COLUMNS = ("n", "accuracy", "95%", "AUC", "AUC 95%", "direction", "p")


def json_ready(value: Any) -> Any:
    """Tuples as lists, NaN as None (a pair with NaN as None)."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [json_ready(item) for item in value]
        return None if isinstance(value, tuple) and None in items else items
    return None if isinstance(value, float) and math.isnan(value) else value


def score_summary(metrics: dict[str, Any], names: Sequence[str] | None = None) -> list[list[Any]]:
    """Rows `score, stratum, n, accuracy, its interval, AUC, its interval, direction, p`."""
    rows = []
    for name, by_stratum in metrics["scores"].items():
        for stratum, entry in by_stratum.items():
            if names is None or stratum in names:
                rows.append([name, stratum, *figure_cells(entry)])
    return rows


def figure_cells(entry: dict[str, Any]) -> list[Any]:
    """n, accuracy, interval, AUC, interval, direction, p-value of figures, for a table."""
    return [
        entry["n"],
        entry["accuracy"],
        interval_text(entry["accuracy_ci95"]),
        entry.get("auc"),
        interval_text(entry.get("auc_ci95")),
        entry.get("direction"),
        entry.get("p_value"),
    ]


def interval_text(interval: Sequence[float] | None) -> str | None:
    """`[0.512, 0.561]`, or None where there is no interval."""
    return None if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
