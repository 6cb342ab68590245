"""Plots of the arena report as SVG text, drawn with the colours of the page they stand in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

ROW = 24
Entry = tuple[str, float, Sequence[float] | None, str, str]


def forest(entries: Sequence[Entry], chance: float = 0.5) -> str:
    """A dot and an interval per row on one axis, chance as a dashed line.

    Args:
        entries: label, value, (lower, upper) or None, kind (`agrees`, `opposes`, `undetermined`
            or `baseline`, which colours it), and text to the right.
    """
    label_width = 16 + 7 * max((len(entry[0]) for entry in entries), default=0)
    plot, right = 560, 190
    height = ROW * len(entries) + 30
    bounds = [bound for _, value, interval, _, _ in entries for bound in (value, *(interval or ()))]
    low, high = min([*bounds, chance]), max([*bounds, chance])
    margin = 0.04 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return label_width + (value - low) / (high - low) * plot

    parts = [
        _line(x(tick), 0, x(tick), height - 22)
        + _text(x(tick), height - 6, _tick_text(tick), "middle")
        for tick in _ticks(low, high)
    ]
    parts.append(_line(x(chance), 0, x(chance), height - 22, "chance"))
    for row, (label, value, interval, kind, note) in enumerate(entries):
        y = ROW * row + ROW / 2
        parts.append(_text(label_width - 10, y + 4, label, "end", soft=False))
        if interval is not None:
            parts.append(
                f'<line class="{kind}" x1="{x(interval[0]):.1f}" y1="{y}" '
                f'x2="{x(interval[1]):.1f}" y2="{y}" stroke-width="2"/>'
            )
        parts.append(f'<circle class="{kind}" cx="{x(value):.1f}" cy="{y}" r="4.5"/>')
        parts.append(_text(label_width + plot + 12, y + 4, note, "start"))
    return _svg(label_width + plot + right, height, parts)


def reliability_curve(points: Sequence[Mapping[str, Any]]) -> str:
    """Share of A's wins against the predicted probability, the diagonal dashed."""
    if not points:
        return _svg(340, 40, [_text(10, 24, "too few groups of battles to hold any out", "start")])
    values = [float(point[key]) for point in points for key in ("predicted", "observed")]
    low, high = max(0.0, min(values) - 0.05), min(1.0, max(values) + 0.05)
    return _curve(
        [(float(point["predicted"]), float(point["observed"])) for point in points],
        (low, high),
        (low, high),
        ("predicted P(A wins)", "share A won"),
        diagonal=True,
        titles=[f"{point['n']} battles" for point in points],
    )


def learning_curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Mean accuracy over the number of anchors, a line per name, labelled at its end."""
    counts = [int(row["anchors"]) for row in rows]
    means = {name: [float(row[name]["accuracy"]) for row in rows] for name in names}
    every = [value for line in means.values() for value in line]
    low, high = min([0.5, *every]) - 0.01, max(every) + 0.02
    left, width, height, bottom = 42, 280, 230, 34
    last = max(*counts, 1)

    def place(count: float, value: float) -> tuple[float, float]:
        return left + count / last * width, (height - bottom) * (high - value) / (high - low)

    parts = []
    for tick in _ticks(low, high):
        y = place(0, tick)[1]
        parts += [_line(left, y, left + width, y), _text(left - 6, y + 4, _tick_text(tick), "end")]
    labelled = -20.0
    for count in counts:
        if (x := place(count, low)[0]) >= labelled + 20:
            parts.append(_text(x, height - 14, str(count), "middle"))
            labelled = x
    parts.append(_text(left + width / 2, height - 1, "anchor votes", "middle"))
    kinds = dict(zip(names, ("undetermined", "agrees", "systems"), strict=False))
    label_y = -20.0
    for name in sorted(names, key=lambda name: -means[name][-1]):
        dots = [place(count, value) for count, value in zip(counts, means[name], strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        parts.append(
            f'<polyline class="{kinds[name]}" style="fill:none" stroke-width="2" points="{path}"/>'
        )
        parts += [
            f'<circle class="{kinds[name]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in dots
        ]
        label_y = max(dots[-1][1] + 4, label_y + 14)
        parts.append(_text(left + width + 8, label_y, name.replace("_", " "), "start"))
    return _svg(left + width + 90, height, parts)


def heat_map(systems: Sequence[str], cells: Mapping[tuple[str, str], tuple[float, int]]) -> str:
    """Accuracy per pair of systems: greener above one half, redder below; n in small print.

    Args:
        systems: rows and columns.
        cells: (system, system) in either order -> accuracy, battles.
    """
    side, left = 52, 14 + 7 * max((len(name) for name in systems), default=0)
    top = 10 + 4.6 * max((len(name) for name in systems), default=0)
    parts = []
    for i, row in enumerate(systems):
        y = top + i * side / 1.4
        parts.append(_text(left - 8, y + 22, row, "end", soft=False))
        x = left + i * side
        parts.append(
            f'<text class="soft" x="0" y="0" transform="translate({x + 22:.0f} {top - 6:.0f}) '
            f'rotate(-40)">{escape(row)}</text>'
        )
        for j, column in enumerate(systems):
            found = cells.get((row, column)) or cells.get((column, row))
            if found is not None:
                parts.append(_heat_cell(left + j * side, y, side, found, f"{row} vs {column}"))
    return _svg(left + side * len(systems) + 90, int(top + side / 1.4 * len(systems) + 10), parts)


def _heat_cell(x: float, y: float, side: float, found: tuple[float, int], title: str) -> str:
    value, n = found
    kind, strength = ("above" if value >= 0.5 else "below"), min(1.0, abs(value - 0.5) * 2)
    height = side / 1.4
    return (
        f"<g><title>{escape(title)}: {value:.3f} of {n}</title>"
        f'<rect class="{kind}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{side - 2}" '
        f'height="{height - 2:.1f}" rx="3" fill-opacity="{0.06 + 0.6 * strength:.2f}"/>'
        + _text(x + side / 2, y + height / 2, f"{value:.2f}", "middle", soft=False)
        + _text(x + side / 2, y + height / 2 + 13, f"n {n}", "middle")
        + "</g>"
    )


def _curve(
    dots: Sequence[tuple[float, float]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    labels: tuple[str, str],
    *,
    diagonal: bool,
    titles: Sequence[str],
) -> str:
    left, top, width, height = 52, 12, 300, 220

    def place(dot: tuple[float, float]) -> tuple[float, float]:
        across = (dot[0] - x_range[0]) / (x_range[1] - x_range[0])
        up = (dot[1] - y_range[0]) / (y_range[1] - y_range[0])
        return left + across * width, top + (1 - up) * height

    parts = []
    for tick in _ticks(*x_range):
        x, _ = place((tick, y_range[0]))
        parts += [_line(x, top, x, top + height)]
        parts += [_text(x, top + height + 15, _tick_text(tick), "middle")]
    for tick in _ticks(*y_range):
        _, y = place((x_range[0], tick))
        parts += [_line(left, y, left + width, y), _text(left - 6, y + 4, _tick_text(tick), "end")]
    if diagonal:
        parts.append(_line(*place((x_range[0],) * 2), *place((x_range[1],) * 2), "chance"))
    placed = [place(dot) for dot in dots]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    parts += [
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4">'
        f"<title>{escape(title)}</title></circle>"
        for (x, y), title in zip(placed, titles, strict=True)
    ]
    parts.append(_text(left + width / 2, top + height + 32, labels[0], "middle"))
    parts.append(
        f'<text class="soft" text-anchor="middle" transform="translate(12 {top + height / 2}) '
        f'rotate(-90)">{escape(labels[1])}</text>'
    )
    return _svg(left + width + 14, top + height + 40, parts)


def _ticks(low: float, high: float) -> list[float]:
    """About six round values from `low` to `high`, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _tick_text(tick: float) -> str:
    return f"{tick:.0f}" if abs(tick) >= 10 else f"{tick:.2f}"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<line{name} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, *, soft: bool = True) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{"".join(parts)}</svg>'
