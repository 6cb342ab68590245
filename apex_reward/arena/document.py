"""A report as blocks, written once and rendered as Markdown and as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from apex_reward.files.tables import write_text


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
class Grid:
    """A table; cells are text, numbers (three decimals) or None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """A plot as SVG text with a caption; Markdown names it and leaves it to the page."""

    caption: str
    svg: str
    wide: bool = False


Block = Heading | Words | Grid | Picture


def write_document(folder: Path, title: str, subtitle: str, blocks: Sequence[Block]) -> None:
    """Write `report.md` and `report.html` into `folder`."""
    write_text(folder / "report.md", as_markdown(title, subtitle, blocks))
    write_text(folder / "report.html", as_page(title, subtitle, blocks))


def as_markdown(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """The report as Markdown, its plots named only."""
    parts = [f"# {title}", subtitle]
    for block in blocks:
        if isinstance(block, Heading):
            parts += [f"## {block.text}", *([block.note] if block.note else [])]
        elif isinstance(block, Words):
            parts.append(f"**{block.text}**" if block.tone == "warning" else block.text)
        elif isinstance(block, Grid):
            parts.append(markdown_table(block.columns, block.rows))
        else:
            parts.append(f"*{block.caption}: drawn in `report.html`.*")
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table.

    >>> print(markdown_table(["score", "auc"], [["tj", 0.5516], ["other", None]]))
    | score | auc |
    |---|---|
    | tj | 0.552 |
    | other | - |
    """
    lines = [columns, ["---"] * len(columns), *([cell_text(v) for v in row] for row in rows)]
    texts = ["| " + " | ".join(str(v).replace("|", "\\|") for v in line) + " |" for line in lines]
    texts[1] = "|" + "---|" * len(columns)
    return "\n".join(texts)


def as_page(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """The report as one HTML page that loads nothing."""
    page = files("apex_reward.arena").joinpath("report_page.html").read_text(encoding="utf-8")
    body = "\n".join(_html(block) for block in blocks)
    for name, text in (("title", escape(title)), ("subtitle", escape(subtitle)), ("body", body)):
        page = page.replace("{{" + name + "}}", text)
    return page


def cell_text(value: object) -> str:
    """A cell for a reader: three decimals (tiny ones as 1e-05), a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
    return str(value)


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        note = f"<p>{escape(block.note)}</p>" if block.note else ""
        return f"<h2>{escape(block.text)}</h2>{note}"
    if isinstance(block, Words):
        return f'<p class="{block.tone}">{escape(block.text)}</p>'
    if isinstance(block, Picture):
        kind = ' class="wide"' if block.wide else ""
        caption = f"<figcaption>{escape(block.caption)}</figcaption>"
        return f'<figure{kind}>{caption}<div class="scroll">{block.svg}</div></figure>'
    head = "".join(f"<th>{escape(column)}</th>" for column in block.columns)
    rows = "".join(
        "<tr>" + "".join(_html_cell(value) for value in row) + "</tr>" for row in block.rows
    )
    return f'<div class="list"><table><tr>{head}</tr>{rows}</table></div>'


def _html_cell(value: object) -> str:
    text = cell_text(value)
    number = text == "-" or (text[:1] in "-[0123456789" and not isinstance(value, bool))
    return f'<td class="number">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"
