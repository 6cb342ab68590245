"""Pictures of a prepared data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from apex_reward.report.figures import label, new_panels, save_figure
from apex_reward.scores.apex import POPULARITY_HEADS


def plot_distributions(
    rows: Sequence[Mapping[str, Any]], path: Path, formats: Sequence[str] = ("png",)
) -> None:
    """Counts (log scale) and scores per platform, and scores per split.

    Args:
        rows: of the manifest.
        path: of the PNG; other formats are written beside it.
        formats: as `save_figure` takes them.
    """
    figure, panels = new_panels(2, 3, 13, 7)
    for line, head in enumerate(POPULARITY_HEADS):
        count = head.removeprefix("score_")
        top = max(float(row[count] or 0) for row in rows)
        edges = np.concatenate([[0], np.geomspace(1, max(top, 2), 20)])
        scores = np.linspace(0, 100, 21)
        counted, scored, split = panels[3 * line : 3 * line + 3]
        _outlines(counted, rows, "platform", count, edges)
        counted.set_xscale("symlog", linthresh=1)
        counted.set(title=f"{count}, by platform", xlabel=f"{count} (count)")
        _outlines(scored, rows, "platform", head, scores)
        scored.set(title=f"{head}, by platform", xlabel=f"{head} (0 to 100)")
        _outlines(split, rows, "split", head, scores, density=True)
        split.set(title=f"{head}, by split (shares)", xlabel=f"{head} (0 to 100)")
    figure.suptitle(f"{len(rows)} songs")
    save_figure(figure, path.with_suffix(""), formats)


def _outlines(
    panel: Axes,
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
        panel.hist(values, bins=edges, weights=weights, histtype="step", label=label(str(name)))
    panel.set_ylabel("share of songs" if density else "songs")
    panel.legend(fontsize=8, frameon=False)
