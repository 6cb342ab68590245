"""What a training run leaves: `history.jsonl`, `summary.json` and a picture of its curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.files.tables import write_json, write_table
from apex_reward.report.figures import SERIES, SOFT, label, new_panels, save_figure


def before_and_after(steps: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """How far a run came: the first tenth of its steps against the last.

    Args:
        steps: rewards of the songs of each step, in order; None where one was not scored.

    Returns:
        `reward_before` and `reward_after`, the means over the songs of the first and the last tenth
        of the steps (at least one step), and `reward_std_before`, the standard deviation over the
        songs of the first tenth.

    Raises:
        UsageError: no scored song in one of them.
    """
    tenth = max(1, round(len(steps) / 10))
    first, last = (
        [reward for step in part for reward in step if reward is not None]
        for part in (steps[:tenth], steps[-tenth:])
    )
    if not first or not last:
        raise UsageError("the first or the last tenth of the run has no scored song")
    return {
        "reward_before": statistics.fmean(first),
        "reward_after": statistics.fmean(last),
        "reward_std_before": statistics.pstdev(first),
    }


def write_run(
    output: Path,
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    panels: Mapping[str, Sequence[str]],
    formats: Sequence[str] = ("png",),
    xlabel: str = "step",
) -> None:
    """Write `history.jsonl`, `summary.json` and `curves.png` into a folder.

    Args:
        output: the folder; made where it is not there.
        history: a row per logged step, each with `step`.
        summary: JSON-ready values. A true `demonstration` puts a note on the picture.
        panels: title of each panel of the picture, and the columns of `history` it shows.
        formats: of the picture, as `save_figure` takes them.
        xlabel: what a step is, such as `N (candidates per prompt)`.
    """
    write_table(output / "history.jsonl", history)
    write_json(output / "summary.json", summary)
    note = "reward of a demonstration model" if summary.get("demonstration") else ""
    draw_curves(history, panels, output / "curves", note, formats, xlabel)


def draw_curves(
    history: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    path: Path,
    note: str = "",
    formats: Sequence[str] = ("png",),
    xlabel: str = "step",
) -> None:
    """Draw columns of a history over its `step`, a panel for each entry of `panels`.

    Args:
        path: of the picture, without its ending.
        note: small print above it.
        formats: as `save_figure` takes them.
        xlabel: what a step is.
    """
    figure, axes = new_panels(1, len(panels), 4.6 * len(panels), 3.4)
    for axis, (title, columns) in zip(axes, panels.items(), strict=True):
        for colour, column in zip(SERIES, columns, strict=False):
            points = [(row["step"], row[column]) for row in history if row.get(column) is not None]
            if points:
                _draw(axis, points, colour, column)
        axis.set(title=label(title), xlabel=label(xlabel))
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    if note:
        figure.suptitle(label(note), fontsize=9, color=SOFT, x=0.01, ha="left")
    save_figure(figure, path, formats)


def _draw(axis: Any, points: list[tuple[float, float]], colour: str, name: str) -> None:
    """The values; where there are many, faint behind their moving mean."""
    steps, values = zip(*points, strict=True)
    width = len(values) // 20
    windows = [values[max(0, i - width) : i + width + 1] for i in range(len(values))]
    if width:
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    means = [math.fsum(window) / len(window) for window in windows]
    axis.plot(steps, means, color=colour, linewidth=1.8, label=label(name.rpartition("/")[2]))
