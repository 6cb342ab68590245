"""A report as blocks, written once: as Markdown and as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from apex_reward.files.tables import write_text
from apex_reward.report.cells import cell
from apex_reward.report.figures import save_figure
from apex_reward.report.markdown import markdown_table, markdown_text
from apex_reward.report.page import render


@dataclass(frozen=True)
class Heading:
    """A section's title and a sentence under it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Words:
    """A paragraph; `tone` is `plain`, `good` or `warning`."""

    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Tiles:
    """Large numbers with what they count."""

    numbers: Mapping[str, int | float]


@dataclass(frozen=True)
class Grid:
    """A table; cells are what `cell` takes, or a `Player`. `name` is what screen readers say."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    name: str = "Table"


@dataclass(frozen=True)
class Picture:
    """A figure with a caption; Markdown names it and leaves it to the page.

    Attributes:
        name: of the file, without its ending, when pictures are written on their own; unique.
        wide: takes a row of the page of its own.
    """

    caption: str
    figure: Figure
    name: str
    note: str = ""
    wide: bool = False


Block = Heading | Words | Tiles | Grid | Picture


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
    """The report as Markdown, its pictures named only."""
    parts = [f"# {_words(title)}", _words(subtitle)]
    for block in blocks:
        parts += _markdown(block)
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Heading):
        return [f"## {_words(block.text)}", _words(block.note)]
    if isinstance(block, Words):
        text = _words(block.text)
        return [f"**{text}**" if block.tone == "warning" else text]
    if isinstance(block, Tiles):
        return [", ".join(f"{cell(value)} {_words(name)}" for name, value in block.numbers.items())]
    if isinstance(block, Grid):
        return [markdown_table(block.columns, block.rows)]
    return [f"*{_words(block.caption)}: drawn in `report.html`.*"]


def _words(text: str) -> str:
    return markdown_text(cell(text))


def as_page(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """The report as one HTML page that loads nothing but songs that lie beside it."""
    return render(
        "report/templates/document.html",
        title=title,
        subtitle=subtitle,
        blocks=list(_grouped(blocks)),
    )


def _grouped(blocks: Sequence[Block]) -> Iterator[tuple[str, Any]]:
    """Each block with its kind's name; neighbouring pictures as one list, to share rows."""
    for pictures, members in groupby(blocks, key=lambda block: isinstance(block, Picture)):
        if pictures:
            yield "Pictures", list(members)
        else:
            yield from ((type(block).__name__, block) for block in members)
