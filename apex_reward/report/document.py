"""A report is one list of blocks, shown as an HTML page, as Markdown and on a terminal."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apex_reward.files.tables import json_ready, write_text
from apex_reward.report.cells import Player, cell, is_numeric, middle_cut, visible
from apex_reward.report.figures import inline_svg, save_figure
from apex_reward.report.markdown import markdown_table, markdown_text

LONGEST_TEXT, NARROWEST_TEXT, GAP = 72, 12, 2
_INTERVAL = re.compile(r"95|interval", re.IGNORECASE)
_COLOURS = {"good": "green", "warning": "yellow", "soft": "dim"}


@dataclass(frozen=True)
class Heading:
    """A section's title, and a sentence below it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Words:
    """A paragraph. `tone` is `plain`, or `good` or `warning` for a paragraph in a box."""

    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Grid:
    """A table. A page sorts it by a click on a heading.

    On a phone each row is a card: the texts before the first number, then the columns whose name
    has `95` or `interval`, then the others.

    Attributes:
        columns: names of the columns.
        rows: cells as `apex_reward.report.cells.cell` reads them, or a `Player`.
        name: the table's name for screen readers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    name: str = "Table"


def record_grid(
    label: str,
    records: Iterable[tuple[str, Mapping[str, Any]]],
    columns: Mapping[str, str],
    name: str = "Table",
) -> Grid:
    """A table with a row per record.

    Args:
        label: the name of the first column.
        records: the first cell and the values of each row; an absent value is a dash.
        columns: name of each other column -> key of its values. A value whose key holds `ci95` is
            an interval, shown as `[0.512, 0.561]`.
        name: as for `Grid`.
    """
    rows = []
    for first, record in records:
        cells = [(key, record.get(key)) for key in columns.values()]
        rows.append([first, *(interval_text(x) if "ci95" in key else x for key, x in cells)])
    return Grid((label, *columns), rows, name)


def interval_text(interval: Sequence[float] | None) -> str | None:
    """`[0.512, 0.561]`, or None where there is no interval."""
    return None if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


@dataclass(frozen=True)
class Picture:
    """A figure with a caption. Only the page draws it; Markdown names it.

    Attributes:
        caption: the title.
        figure: drawn as wide as the page where the picture has a row of its own.
        name: the file name without its ending; unique in the document.
        note: small print below the caption.
        wide: whether the picture has a row of its own. A picture without neighbours always has.
    """

    caption: str
    figure: Figure
    name: str
    note: str = ""
    wide: bool = False


Block = Heading | Words | Grid | Picture


def write_document(
    folder: Path, title: str, subtitle: str, blocks: Sequence[Block], formats: Sequence[str] = ()
) -> None:
    """Write `report.md` and `report.html` into `folder`, and each picture in `formats` beside."""
    write_text(folder / "report.md", as_markdown(title, subtitle, blocks))
    write_text(folder / "report.html", as_page(title, subtitle, blocks))
    for block in blocks:
        if isinstance(block, Picture):
            save_figure(block.figure, folder / block.name, formats)


def as_markdown(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """The report as Markdown; a picture is one line that names it."""
    parts = [f"# {_words(title)}", _words(subtitle)]
    for block in blocks:
        if isinstance(block, Heading):
            parts += [f"## {_words(block.text)}", _words(block.note)]
        elif isinstance(block, Words):
            text = _words(block.text)
            parts.append(f"**{text}**" if block.tone == "warning" else text)
        elif isinstance(block, Grid):
            parts.append(markdown_table(block.columns, block.rows))
        else:
            parts.append(f"*{_words(block.caption)}: drawn in `report.html`.*")
    return "\n\n".join(filter(None, parts)) + "\n"


def _words(text: str) -> str:
    return markdown_text(cell(text))


def as_page(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """The report as one HTML page that loads nothing except songs beside it."""
    grouped: list[tuple[str, Any]] = []
    for pictures, members in groupby(blocks, key=lambda block: isinstance(block, Picture)):
        if pictures:
            grouped.append(("Pictures", list(members)))
        else:
            grouped += [(type(block).__name__, block) for block in members]
    template = "report/templates/document.html"
    return render(template, title=title, subtitle=subtitle, blocks=grouped)


def render(template: str, **values: Any) -> str:
    """A filled template of the package.

    Args:
        template: its path in the package, such as `report/templates/document.html`. Templates have
            the filters `cell`, `drawing` (a figure as an SVG element, with an optional width in
            inches), `numeric_columns` (of rows) and `script_json` (a value for a script element,
            NaN as null), and the tests `player` and `interval` (a column's name).
        values: the template's variables. A missing one is an error.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("apex_reward", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "cell": cell,
        "drawing": lambda *given: Markup(inline_svg(*given)),
        "numeric_columns": lambda rows, number: [
            is_numeric(row[position] for row in rows) for position in range(number)
        ],
        "script_json": lambda value: htmlsafe_json_dumps(json_ready(value), allow_nan=False),
    }
    made.tests["player"] = lambda value: isinstance(value, Player)
    made.tests["interval"] = lambda name: bool(_INTERVAL.search(name))
    return made


def print_blocks(blocks: Sequence[Block]) -> None:
    """Print a report on stdout, without its pictures."""
    console = Console(highlight=False)
    title = ""
    for block in blocks:
        if isinstance(block, Picture):
            continue
        if isinstance(block, Grid):
            print_table(title, block.columns, block.rows)
        elif title:
            console.print(Text(title, style="italic"))
        title = ""
        if isinstance(block, Heading):
            title = visible(block.text)
        elif isinstance(block, Words):
            console.print(Text(visible(block.text), style=_COLOURS.get(block.tone, "")))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout.

    Numbers are right-aligned and stay whole. Text is wrapped. A table that is wider than the
    terminal continues below, with its first column again. Control characters are escaped.

    Args:
        title: a line above the table; none where it is empty.
        columns: names of the columns; long ones are wrapped.
        rows: cells of each row, as `apex_reward.report.cells.cell` reads them.
    """
    console = Console()
    shown = [[middle_cut(cell(value), LONGEST_TEXT) for value in row] for row in rows]
    heads = [
        re.sub(r"(?<=[._])(?=.)", "\n", name) if len(name) > NARROWEST_TEXT else name
        for name in map(visible, columns)
    ]
    numeric = [is_numeric(row[at] for row in shown) for at in range(len(columns))]
    least = []
    for at, head in enumerate(heads):
        widest = max((cell_len(row[at]) for row in shown), default=1)
        words = min(max(map(cell_len, head.split()), default=1), NARROWEST_TEXT)
        least.append(max(words, widest if numeric[at] else min(widest, NARROWEST_TEXT)))
    if title:
        console.print(Text(visible(title), style="italic"))
    for part in _parts(least, console.width):
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False)
        for at in part:
            table.add_column(
                Text(heads[at]), justify="right" if numeric[at] else "left", overflow="fold",
                width=least[at] if numeric[at] else None, min_width=least[at],
            )  # fmt: skip
        for row in shown:
            table.add_row(*(Text(row[at]) for at in part))
        console.print(table)


def _parts(least: Sequence[int], width: int) -> list[list[int]]:
    """Positions of the columns of each part of a table, none wider than the terminal."""
    parts: list[list[int]] = [[]]
    for at, need in enumerate(least):
        used = sum(least[other] + GAP for other in parts[-1])
        if used + need > width and parts[-1] not in ([], [0]):
            parts.append([0])
        parts[-1].append(at)
    return parts
