"""Pictures of a prepared data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex_reward.files.tables import atomic_path
from apex_reward.scores.apex import POPULARITY_HEADS


def plot_distributions(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Counts (log scale) and scores per platform, and scores per split, as one PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    for line, head in enumerate(POPULARITY_HEADS):
        count = head.removeprefix("score_")
        top = max(float(row[count] or 0) for row in rows)
        edges = np.concatenate([[0], np.geomspace(1, max(top, 2), 20)])
        scores = np.linspace(0, 100, 21)
        _outlines(panels[line][0], rows, "platform", count, edges)
        panels[line][0].set_xscale("symlog", linthresh=1)
        panels[line][0].set_title(f"{count}, by platform")
        _outlines(panels[line][1], rows, "platform", head, scores)
        panels[line][1].set_title(f"{head}, by platform")
        _outlines(panels[line][2], rows, "split", head, scores, density=True)
        panels[line][2].set_title(f"{head}, by split (shares)")
    figure.suptitle(f"{len(rows)} songs")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _outlines(
    panel: Any,
    rows: Sequence[Mapping[str, Any]],
    group: str,
    column: str,
    edges: Any,
    density: bool = False,
) -> None:
    """One outlined histogram per value of `group`."""
    for name in sorted({row[group] for row in rows}):
        values = [row[column] for row in rows if row[group] == name]
        weights = [1 / len(values)] * len(values) if density else None
        panel.hist(values, bins=edges, weights=weights, histtype="step", label=str(name))
    panel.set_xlabel(column)
    panel.set_ylabel("share" if density else "songs")
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
