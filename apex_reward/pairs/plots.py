"""Small plots as inline SVG, drawn with the colours of the page they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from apex_reward.pairs.axes import Floats

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 190, 42, 26, 10
FEWEST_BINS, MOST_BINS = 9, 24
ROW, LABEL_ROWS = 34, 8
LONGEST_LABEL = 58


def histogram(title: str, note: str, values: Floats) -> str:
    """A figure with the distribution of finite values; says so where there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return _figure(title, note, "<p>nothing to show</p>")
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(
        values, bins=int(np.clip(len(values), FEWEST_BINS, MOST_BINS)), range=(low, high)
    )
    top = int(counts.max())
    step = (WIDTH - LEFT - 8) / len(counts)
    scale = (HEIGHT - BOTTOM - TOP) / top
    bars = "".join(
        f'<rect x="{LEFT + i * step + 0.5:.1f}" y="{HEIGHT - BOTTOM - n * scale:.1f}" '
        f'width="{max(step - 1, 0.5):.1f}" height="{n * scale:.1f}">'
        f"<title>{edges[i]:.3g} to {edges[i + 1]:.3g}: {n}</title></rect>"
        for i, n in enumerate(counts.tolist())
        if n
    )
    return _figure(title, note, _svg(HEIGHT, _axes(low, high, top) + bars))


def bars(title: str, note: str, counts: Mapping[str, int]) -> str:
    """A figure with one horizontal bar per name, longest first; the tail is added up."""
    if not counts:
        return _figure(title, note, "<p>nothing</p>")
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(rows) > LABEL_ROWS:
        rest = rows[LABEL_ROWS - 1 :]
        rows = [
            *rows[: LABEL_ROWS - 1],
            (f"{len(rest)} others", sum(number for _, number in rest)),
        ]
    most = max(number for _, number in rows)
    drawn = "".join(_bar(i, name, number, number / most) for i, (name, number) in enumerate(rows))
    return _figure(title, note, _svg(ROW * len(rows), drawn))


def sides(title: str, note: str, counts: Mapping[str, tuple[int, int]]) -> str:
    """A figure with two bars per name: how often it was chosen and how often rejected."""
    if not counts:
        return _figure(title, note, "<p>nothing to show</p>")
    rows = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))[:LABEL_ROWS]
    most = max(max(pair) for _, pair in rows)
    drawn = "".join(
        _label(i, label, f"{chosen} / {rejected}")
        + _rect(i * ROW + 16, chosen / most, "chosen", 6)
        + _rect(i * ROW + 23, rejected / most, "rejected", 6)
        for i, (label, (chosen, rejected)) in enumerate(rows)
    )
    return _figure(title, note, _svg(ROW * len(rows), drawn))


def _axes(low: float, high: float, top: int) -> str:
    base = HEIGHT - BOTTOM
    lines = [f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{base}" y2="{base}"/>']
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + share * (WIDTH - LEFT - 8)
        value = f"{low + share * (high - low):.3g}"
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{value}</text>')
    for number in sorted({0, top}):
        y = base - number / top * (base - TOP) + 4
        lines.append(f'<text x="{LEFT - 6}" y="{y:.1f}" text-anchor="end">{number}</text>')
    if low < 0 < high:
        x = LEFT - low / (high - low) * (WIDTH - LEFT - 8)
        lines.append(f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
    return "".join(lines)


def _bar(index: int, name: str, number: int, share: float) -> str:
    return _label(index, name, str(number)) + _rect(index * ROW + 16, share, "", 10)


def _label(index: int, name: str, number: str) -> str:
    short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
    y = index * ROW + 12
    return (
        f'<text x="0" y="{y}">{escape(short)}<title>{escape(name)}</title></text>'
        f'<text x="{WIDTH}" y="{y}" text-anchor="end">{number}</text>'
    )


def _rect(y: float, share: float, name: str, height: int) -> str:
    width = max(share * WIDTH, 1.0) if share else 0.0
    kind = f' class="{name}"' if name else ""
    return f'<rect{kind} x="0" y="{y}" width="{width:.1f}" height="{height}"/>'


def _svg(height: int, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{body}</svg>'


def _figure(title: str, note: str, body: str) -> str:
    caption = f"{escape(title)}<small>{escape(note)}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{body}</figure>"
