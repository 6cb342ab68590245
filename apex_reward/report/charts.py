"""The kinds of pictures that reports share. Each says in its label what it shows, for pages.

Shape key: N = values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from apex_reward.report.cells import middle_cut
from apex_reward.report.figures import (
    BAD,
    BAR,
    GOOD,
    INK,
    SERIES,
    SOFT,
    TONES,
    label,
    new_figure,
    style,
)  # fmt: skip

FEWEST_BINS, MOST_BINS = 9, 24
MOST_BARS = 8
LONGEST_NAME = 46
Interval = tuple[float, float] | Sequence[float] | None


@dataclass(frozen=True)
class Entry:
    """A row of a forest plot.

    Attributes:
        name: what the value is of.
        value: where the dot is.
        interval: (lower, upper) or None.
        tone: `good`, `bad`, `neutral` or `plain`: the colour.
        note: text at the end of the row, such as the number of cases.
    """

    name: str
    value: float
    interval: Interval = None
    tone: str = "plain"
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a plot: equally many x and y, and with `low` and `high` an interval at each."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def histogram(values: npt.ArrayLike, xlabel: str, ylabel: str) -> Figure:
    """How the finite ones of (N,) values are spread, zero marked where they lie on both sides."""
    known = np.asarray(values, np.float64).ravel()
    known = known[np.isfinite(known)]
    if not len(known):
        return nothing(f"{xlabel}: no value is known")
    figure, axis = new_figure()
    low, high = float(known.min()), float(known.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(len(known), FEWEST_BINS, MOST_BINS))
    axis.hist(known, bins=bins, range=(low, high), color=BAR, rwidth=0.92)
    if low < 0 < high:
        axis.axvline(0, color=SOFT, linestyle=(0, (3, 3)), linewidth=1)
    axis.grid(visible=False, axis="x")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel=label(xlabel), ylabel=ylabel)
    figure.set_label(
        f"Histogram of {xlabel}: {len(known)} {ylabel} from {known.min():.3g} to "
        f"{known.max():.3g}, median {np.median(known):.3g}"
    )
    return figure


def bars(counts: Mapping[str, float], xlabel: str) -> Figure:
    """A horizontal bar per name, longest first; what is beyond `MOST_BARS` is added up."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(rows) > MOST_BARS:
        rest = rows[MOST_BARS - 1 :]
        rows = [*rows[: MOST_BARS - 1], (f"{len(rest)} others", sum(value for _, value in rest))]
    return _named_bars([(name, (value,)) for name, value in rows], xlabel, ("",), (BAR,))


def paired_bars(
    counts: Mapping[str, tuple[float, float]], xlabel: str, sides: tuple[str, str]
) -> Figure:
    """Two bars per name, for the `MOST_BARS` names with the largest sums; `sides` names them."""
    rows = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))[:MOST_BARS]
    return _named_bars(rows, xlabel, sides, (GOOD, BAD))


def _named_bars(
    rows: Sequence[tuple[str, Sequence[float]]],
    xlabel: str,
    sides: Sequence[str],
    colours: Sequence[str],
) -> Figure:
    """Names stand above their bars, so that long ones are whole on a phone."""
    if not rows:
        return nothing(f"{xlabel}: none")
    figure, axis = new_figure(4.0, 0.62 + 0.42 * len(rows) + (0.2 if len(sides) > 1 else 0))
    height = 0.36 / len(sides)
    places = np.arange(len(rows))
    most = max(max(values) for _, values in rows) or 1
    for side, (name, colour) in enumerate(zip(sides, colours, strict=True)):
        axis.barh(
            places + 0.2 + (side + 0.5) * height,
            [values[side] for _, values in rows],
            height=height * 0.9,
            color=colour,
            label=name,
        )
    for place, (name, values) in zip(places, rows, strict=True):
        axis.text(0, place + 0.12, label(middle_cut(name, LONGEST_NAME)), fontsize=8.5, color=INK)
        shown = " / ".join(f"{value:g}" for value in values)
        axis.text(most, place + 0.12, shown, fontsize=8.5, color=SOFT, ha="right")
    _bare_rows(axis, len(rows), (0, most))
    if all(float(value).is_integer() for _, values in rows for value in values):
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel(label(xlabel))
    if len(sides) > 1:
        with style():
            figure.legend(loc="outside upper left", ncols=2)
    listed = "; ".join(f"{name} {' / '.join(f'{v:g}' for v in values)}" for name, values in rows)
    figure.set_label(f"Bars of {xlabel}: {listed}")
    return figure


def _bare_rows(axis: Axes, rows: int, limits: tuple[float, float]) -> None:
    axis.set_xlim(*limits)
    axis.set_ylim(rows - 0.25, -0.25)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def forest(entries: Sequence[Entry], xlabel: str, reference: float | None = None) -> Figure:
    """A dot and its interval per row on one axis, names above them.

    Args:
        entries: the rows, from top to bottom.
        xlabel: the axis' name with its unit.
        reference: where a dashed line stands, such as chance.
    """
    if not entries:
        return nothing(f"{xlabel}: none")
    figure, axis = new_figure(4.6, 0.62 + 0.4 * len(entries))
    bounds = [bound for entry in entries for bound in (entry.value, *(entry.interval or ()))]
    if reference is not None:
        bounds.append(reference)
        axis.axvline(reference, color=SOFT, linestyle=(0, (3, 3)), linewidth=1)
    margin = 0.04 * (max(bounds) - min(bounds)) or 0.05
    limits = min(bounds) - margin, max(bounds) + margin
    for row, entry in enumerate(entries):
        colour, at = TONES[entry.tone], row + 0.42
        if entry.interval is not None:
            axis.plot(list(entry.interval), [at, at], color=colour, linewidth=2)
        axis.plot([entry.value], [at], "o", color=colour)
        name = label(middle_cut(entry.name, LONGEST_NAME))
        axis.text(limits[0], row + 0.12, name, fontsize=8.5, color=INK)
        axis.text(limits[1], row + 0.12, label(entry.note), fontsize=8, color=SOFT, ha="right")
    _bare_rows(axis, len(entries), limits)
    axis.set_xlabel(label(xlabel))
    figure.set_label(f"{xlabel}: " + "; ".join(map(_entry_words, entries)))
    return figure


def _entry_words(entry: Entry) -> str:
    words = f"{entry.name} {entry.value:.3g}"
    if entry.interval is None:
        return words
    return f"{words} ({entry.interval[0]:.3g} to {entry.interval[1]:.3g})"


def curves(
    lines: Mapping[str, Line], xlabel: str, ylabel: str, *, diagonal: bool = False
) -> Figure:
    """Lines with their points, and a band where they have intervals.

    Args:
        lines: by name, in the order of the palette.
        xlabel, ylabel: names of the axes with their units.
        diagonal: whether x = y is drawn, dashed, as in a reliability curve.
    """
    known = {name: line for name, line in lines.items() if len(line.x)}
    if not known:
        return nothing(f"{ylabel}: nothing to draw")
    figure, axis = new_figure(4.0, 2.9)
    for (name, line), colour in zip(known.items(), _colours(len(known)), strict=True):
        axis.plot(line.x, line.y, marker="o", markersize=3.5, color=colour, label=label(name))
        if line.low is not None and line.high is not None:
            axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    if diagonal:
        axis.axline((0.5, 0.5), slope=1, color=SOFT, linestyle=(0, (3, 3)), linewidth=1)
    axis.set(xlabel=label(xlabel), ylabel=label(ylabel))
    if len(known) > 1:
        with style():
            figure.legend(loc="outside upper left", ncols=1 if len(known) < 4 else 2)
    ends = "; ".join(f"{name} ends at {line.y[-1]:.3g}" for name, line in known.items())
    figure.set_label(f"{ylabel} over {xlabel}: {ends}")
    return figure


def _colours(number: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(number)]


def heat_map(
    names: Sequence[str], cells: Mapping[tuple[str, str], tuple[float, int]], middle: float = 0.5
) -> Figure:
    """A value and a number of cases per pair of names: green above `middle`, red below.

    Args:
        names: rows and columns.
        cells: (name, name) in either order -> value in [0, 1], cases.
    """
    size = 1.2 + 0.55 * len(names)
    figure, axis = new_figure(max(4.0, size + 0.8), max(2.0, 0.75 * size + 0.6))
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            found = cells.get((row, column)) or cells.get((column, row))
            if found is None or math.isnan(found[0]):
                continue
            strength = 0.06 + 0.6 * min(1.0, abs(found[0] - middle) * 2)
            box = (j - 0.48, i - 0.48), 0.96, 0.96
            colour = GOOD if found[0] >= middle else BAD
            _rectangle(axis, box, colour, strength)
            axis.text(j, i - 0.02, f"{found[0]:.2f}", ha="center", fontsize=8.5, color=INK)
            axis.text(j, i + 0.32, f"n {found[1]}", ha="center", fontsize=7, color=SOFT)
    short = [label(middle_cut(name, 24)) for name in names]
    axis.set_xticks(range(len(names)), short, rotation=40, ha="right")
    axis.set_yticks(range(len(names)), short)
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axis.grid(visible=False)
    pairs = "; ".join(f"{a} and {b} {value:.2f} of {n}" for (a, b), (value, n) in cells.items())
    figure.set_label(f"Value per pair: {pairs}")
    return figure


def _rectangle(
    axis: Axes, box: tuple[tuple[float, float], float, float], colour: str, strength: float
) -> None:
    axis.add_patch(Rectangle(*box, facecolor=colour, alpha=strength, linewidth=0))


def nothing(words: str) -> Figure:
    """A low figure that says why there is none."""
    figure, axis = new_figure(4.0, 0.5)
    axis.set_axis_off()
    axis.text(0, 0.5, label(words), va="center", color=SOFT, transform=axis.transAxes)
    figure.set_label(words)
    return figure
