"""The kinds of pictures that reports share. The label of each figure describes it for pages.

Shape key: N = values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from apex_reward.report import figures as draw
from apex_reward.report.cells import middle_cut
from apex_reward.report.figures import label, new_figure

FEWEST_BINS, MOST_BINS, MOST_BARS, LONGEST_NAME = 9, 24, 8, 46
DASHED: Any = {"color": draw.SOFT, "linestyle": (0, (3, 3)), "linewidth": 1}
Interval = tuple[float, float] | Sequence[float] | None


@dataclass(frozen=True)
class Entry:
    """A row of a forest plot.

    Attributes:
        name: the text above the row.
        value: the position of the dot.
        interval: (lower, upper) or None.
        tone: the colour: `good`, `bad`, `neutral` or `plain`.
        note: text at the end of the row, such as the number of cases.
    """

    name: str
    value: float
    interval: Interval = None
    tone: str = "plain"
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a plot: as many x as y, and with `low` and `high` an interval at each x."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def histogram(values: npt.ArrayLike, xlabel: str, ylabel: str) -> Figure:
    """Counts of the finite values of (N,); a dashed line marks zero between them."""
    known = np.asarray(values, np.float64).ravel()
    known = known[np.isfinite(known)]
    if not len(known):
        return nothing(f"{xlabel}: no value is known")
    figure, axis = new_figure()
    low, high = float(known.min()), float(known.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(len(known), FEWEST_BINS, MOST_BINS))
    axis.hist(known, bins=bins, range=(low, high), color=draw.BAR, rwidth=0.92)
    if low < 0 < high:
        axis.axvline(0, **DASHED)
    axis.grid(visible=False, axis="x")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel=label(xlabel), ylabel=ylabel)
    figure.set_label(
        f"Histogram of {xlabel}: {len(known)} {ylabel} from {known.min():.3g} to "
        f"{known.max():.3g}, median {np.median(known):.3g}"
    )
    return figure


def bars(
    counts: Mapping[str, float | Sequence[float]], xlabel: str, sides: Sequence[str] = ("",)
) -> Figure:
    """Horizontal bars, the longest first; the names beyond `MOST_BARS` are added up.

    Args:
        counts: a number per name, or one per name and side.
        xlabel: the axis' name with its unit.
        sides: names of the bars of each row.
    """
    rows = [(name, np.atleast_1d(np.asarray(n, np.float64))) for name, n in counts.items()]
    rows.sort(key=lambda row: (-row[1].sum(), row[0]))
    if rest := rows[MOST_BARS - 1 :] if len(rows) > MOST_BARS else []:
        others = np.sum([values for _, values in rest], axis=0)
        rows[MOST_BARS - 1 :] = [(f"{len(rest)} others", others)]
    if not rows:
        return nothing(f"{xlabel}: none")
    # Names are above their bars: on a phone long names are not cut.
    figure, axis = new_figure(4.0, 0.62 + 0.42 * len(rows) + (0.2 if len(sides) > 1 else 0))
    height, places = 0.36 / len(sides), np.arange(len(rows))
    colours = (draw.BAR,) if len(sides) == 1 else (draw.GOOD, draw.BAD)
    most = max(float(values.max()) for _, values in rows) or 1
    for side, (name, colour) in enumerate(zip(sides, colours, strict=True)):
        lengths = [values[side] for _, values in rows]
        at = places + 0.2 + (side + 0.5) * height
        axis.barh(at, lengths, height=height * 0.9, color=colour, label=name)
    numbers = [" / ".join(f"{value:g}" for value in values) for _, values in rows]
    for place, (name, _) in enumerate(rows):
        _row_text(axis, place, name, numbers[place], (0, most))
    _bare_rows(axis, len(rows), (0, most))
    axis.set_xlabel(label(xlabel))
    if len(sides) > 1:
        with draw.style():
            figure.legend(loc="outside upper left", ncols=2)
    listed = "; ".join(f"{name} {text}" for (name, _), text in zip(rows, numbers, strict=True))
    figure.set_label(f"Bars of {xlabel}: {listed}")
    return figure


def _row_text(axis: Axes, row: int, name: str, note: str, ends: tuple[float, float]) -> None:
    short = label(middle_cut(name, LONGEST_NAME))
    axis.text(ends[0], row + 0.12, short, fontsize=8.5, color=draw.INK)
    axis.text(ends[1], row + 0.12, label(note), fontsize=8, color=draw.SOFT, ha="right")


def _bare_rows(axis: Axes, rows: int, limits: tuple[float, float]) -> None:
    axis.set_xlim(*limits)
    axis.set_ylim(rows - 0.25, -0.25)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def forest(entries: Sequence[Entry], xlabel: str, reference: float | None = None) -> Figure:
    """A dot and its interval per row on one axis, the names above them.

    Args:
        entries: the rows, from top to bottom.
        xlabel: the axis' name with its unit.
        reference: position of a dashed line, such as chance.
    """
    if not entries:
        return nothing(f"{xlabel}: none")
    figure, axis = new_figure(4.6, 0.62 + 0.4 * len(entries))
    bounds = [bound for entry in entries for bound in (entry.value, *(entry.interval or ()))]
    if reference is not None:
        bounds.append(reference)
        axis.axvline(reference, **DASHED)
    margin = 0.04 * (max(bounds) - min(bounds)) or 0.05
    limits = min(bounds) - margin, max(bounds) + margin
    words = []
    for row, entry in enumerate(entries):
        colour, at = draw.TONES[entry.tone], row + 0.42
        words.append(f"{entry.name} {entry.value:.3g}")
        if entry.interval is not None:
            low, high = entry.interval
            axis.plot([low, high], [at, at], color=colour, linewidth=2)
            words[-1] += f" ({low:.3g} to {high:.3g})"
        axis.plot([entry.value], [at], "o", color=colour)
        _row_text(axis, row, entry.name, entry.note, limits)
    _bare_rows(axis, len(entries), limits)
    axis.set_xlabel(label(xlabel))
    figure.set_label(f"{xlabel}: " + "; ".join(words))
    return figure


def curves(
    lines: Mapping[str, Line], xlabel: str, ylabel: str, *, diagonal: bool = False
) -> Figure:
    """Lines with their points, and a band for their intervals.

    Args:
        lines: lines by name, in the order of the palette.
        xlabel, ylabel: names of the axes with their units.
        diagonal: draw x = y as a dashed line, as in a reliability curve.
    """
    known = {name: line for name, line in lines.items() if len(line.x)}
    if not known:
        return nothing(f"{ylabel}: nothing to draw")
    figure, axis = new_figure(4.0, 2.9)
    for number, (name, line) in enumerate(known.items()):
        colour = draw.SERIES[number % len(draw.SERIES)]
        axis.plot(line.x, line.y, marker="o", markersize=3.5, color=colour, label=label(name))
        if line.low is not None and line.high is not None:
            axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    if diagonal:
        axis.axline((0.5, 0.5), slope=1, **DASHED)
    axis.set(xlabel=label(xlabel), ylabel=label(ylabel))
    if len(known) > 1:
        with draw.style():
            figure.legend(loc="outside upper left", ncols=1 if len(known) < 4 else 2)
    ends = "; ".join(f"{name} ends at {line.y[-1]:.3g}" for name, line in known.items())
    figure.set_label(f"{ylabel} over {xlabel}: {ends}")
    return figure


def heat_map(names: Sequence[str], cells: Mapping[tuple[str, str], tuple[float, int]]) -> Figure:
    """A value and a number of cases per pair of names: green from one half on, red below.

    Args:
        names: rows and columns.
        cells: (name, name) in either order -> value in [0, 1], cases.
    """
    size = 1.2 + 0.55 * len(names)
    figure, axis = new_figure(max(4.0, size + 0.8), max(2.0, 0.75 * size + 0.6))
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            value, n = cells.get((row, column)) or cells.get((column, row)) or (math.nan, 0)
            if math.isnan(value):
                continue
            strength = 0.06 + 0.6 * min(1.0, abs(value - 0.5) * 2)
            colour = draw.GOOD if value >= 0.5 else draw.BAD
            box = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=colour, alpha=strength)
            axis.add_patch(box)
            axis.text(j, i - 0.02, f"{value:.2f}", ha="center", fontsize=8.5, color=draw.INK)
            axis.text(j, i + 0.32, f"n {n}", ha="center", fontsize=7, color=draw.SOFT)
    short = [label(middle_cut(name, 24)) for name in names]
    axis.set_xticks(range(len(names)), short, rotation=40, ha="right")
    axis.set_yticks(range(len(names)), short)
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axis.grid(visible=False)
    pairs = "; ".join(f"{a} and {b} {value:.2f} of {n}" for (a, b), (value, n) in cells.items())
    figure.set_label(f"Value per pair: {pairs}")
    return figure


def nothing(words: str) -> Figure:
    """A low figure with a sentence instead of a plot."""
    figure, axis = new_figure(4.0, 0.5)
    axis.set_axis_off()
    axis.text(0, 0.5, label(words), va="center", color=draw.SOFT, transform=axis.transAxes)
    figure.set_label(words)
    return figure


def draw_curves(
    history: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    path: Path,
    note: str = "",
    formats: Sequence[str] = ("png",),
    xlabel: str = "step",
) -> None:
    """Draw columns of a history over its `step` into files, a panel per entry of `panels`.

    Args:
        history: a row per logged step.
        panels: title of each panel, and the columns of `history` in it.
        path: the file without its ending.
        note: small print above the panels.
        formats: as `save_figure` reads them.
        xlabel: the meaning of a step.
    """
    figure, axes = draw.new_panels(1, len(panels), 4.6 * len(panels), 3.4)
    for axis, (title, columns) in zip(axes, panels.items(), strict=True):
        for colour, column in zip(draw.SERIES, columns, strict=False):
            points = [(row["step"], row[column]) for row in history if row.get(column) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            width = len(values) // 20  # many values: faint, below their moving mean
            if width:
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            around = [values[max(0, i - width) : i + width + 1] for i in range(len(values))]
            means = [math.fsum(part) / len(part) for part in around]
            axis.plot(steps, means, color=colour, label=label(column.rpartition("/")[2]))
        axis.set(title=label(title), xlabel=label(xlabel))
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    if note:
        figure.suptitle(label(note), fontsize=9, color=draw.SOFT, x=0.01, ha="left")
    draw.save_figure(figure, path, formats)
