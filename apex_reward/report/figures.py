"""The look and the files of every picture: one palette, one style, PNG, SVG and PDF.

The figures are matplotlib's without pyplot, so they need no display and no global state.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apex_reward.errors import UsageError
from apex_reward.files.atomic import atomic
from apex_reward.report.cells import visible

FORMATS = ("png", "svg", "pdf")
INK, SOFT, LINE = "#1c2330", "#5b6472", "#d9dee6"
BAR, GOOD, BAD = "#3f6ea8", "#1f7a4d", "#b4442f"
SERIES = (BAR, "#c2721a", GOOD, "#8a4fa3", BAD, "#12818f", "#7a6a1e", "#b0437f")
"""Colours of lines, in order. Each has a contrast of at least 3 on white."""
TONES = {"good": GOOD, "bad": BAD, "neutral": SOFT, "plain": BAR}
# The style sheet's names of these colours; their values differ in light and in dark.
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES)
}
_STYLE = Path(__file__).with_suffix(".mplstyle")
_DATELESS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@contextmanager
def style() -> Iterator[None]:
    """The package's style for figures that are made or saved within the block."""
    with mpl.rc_context(fname=_STYLE), warnings.catch_warnings():
        # The font lacks some scripts. In a page the text stays text, and the browser draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float = 4.0, height: float = 2.4) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches with one plot; 4 inches are a phone's width."""
    figure, panels = new_panels(1, 1, width, height)
    return figure, panels[0]


def new_panels(
    rows: int, columns: int, width: float, height: float, *, sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """A figure of `width` x `height` inches with a grid of plots, in reading order."""
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(grid.flat)


def label(text: str) -> str:
    r"""A name for matplotlib: a dollar sign starts no formula, control characters are escaped.

    >>> print(label("$100"))
    \$100
    """
    return visible(text).replace("$", r"\$")


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats of `--figures pdf,svg`, with PNG first.

    Raises:
        UsageError: a format that is not one of `FORMATS`.
    """
    asked = [part.strip().lower() for part in text.split(",") if part.strip()]
    if unknown := [name for name in asked if name not in FORMATS]:
        raise UsageError(
            f"unknown figure format {', '.join(unknown)}; choose from {', '.join(FORMATS)}"
        )
    return tuple(dict.fromkeys(("png", *asked)))


def save_figure(
    figure: Figure, path: str | Path, formats: Sequence[str] = ("png",), dpi: int = 130
) -> list[Path]:
    """Write a figure in each format; the same figure gives the same bytes.

    Args:
        figure: the figure.
        path: the file without its ending.
        formats: some of `FORMATS`.
        dpi: dots per inch of the PNG.

    Returns:
        The files, in the order of `formats`.
    """
    files = []
    for kind in formats:
        file = Path(f"{path}.{kind}")
        with atomic(file) as temporary, style():
            figure.savefig(temporary, format=kind, dpi=dpi, metadata=_DATELESS[kind])
        files.append(file)
    return files


def inline_svg(figure: Figure, name: str, width: float | None = None) -> str:
    """A figure as an SVG element of a page: it scales, and it has the page's colours and font.

    Args:
        figure: its label (`figure.set_label`) is the text for screen readers.
        name: a prefix of the ids, unique in the page.
        width: in inches; None keeps the figure's own.
    """
    text = io.StringIO()
    size = figure.get_size_inches()
    figure.set_size_inches(size[0] if width is None else width, size[1])
    with style():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    figure.set_size_inches(*size)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # matplotlib 3.8
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    head = re.search(r'viewBox="[^"]*"', svg)
    words = escape(visible(str(figure.get_label())))
    opening = f'<svg role="img" aria-label="{words}" {head[0] if head else ""}>'
    return opening + svg[svg.index(">") + 1 :]
