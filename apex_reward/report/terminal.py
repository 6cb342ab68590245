"""Tables on a terminal: every number whole, whatever the names are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from apex_reward.report.cells import cell, is_numeric, middle_cut, visible

NARROWEST_NAME = 12
GAP = 2


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout for a person.

    Numbers are right-aligned and never cut. Text is cut in its middle to what they leave of the
    line; where they leave too little, the table goes on below in further parts, each with its
    first column again. Control characters are shown, not sent.

    Args:
        title: a line above the table; none where it is empty.
        columns: names of the columns; long ones are broken over several lines.
        rows: cells of each row; see `apex_reward.report.cells.cell`.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    body = [[cell(value) for value in row] for row in rows]
    if title:
        console.print(Text(visible(title), style="italic"))
    for part in _parts(columns, body, console.width):
        console.print(_drawn(columns, body, part, console.width))


def _parts(columns: Sequence[str], body: list[list[str]], width: int) -> list[list[int]]:
    """Positions of the columns of each part of the table, none wider than the terminal."""
    needs = [_least_width(body, position) for position in range(len(columns))]
    parts: list[list[int]] = [[]]
    used = 0
    for position, need in enumerate(needs):
        if parts[-1] and used + GAP + need > width and parts[-1] != [0]:
            parts.append([0])
            used = needs[0]
        used += need + (GAP if parts[-1] else 0)
        parts[-1].append(position)
    return parts


def _least_width(body: list[list[str]], position: int) -> int:
    from rich.cells import cell_len

    texts = [row[position] for row in body]
    widest = max(map(cell_len, texts), default=1)
    return widest if is_numeric(texts) else min(widest, NARROWEST_NAME)


def _drawn(columns: Sequence[str], body: list[list[str]], part: list[int], width: int) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False)
    shown = {position: [row[position] for row in body] for position in part}
    widths = _widths(columns, shown, width)
    for position, texts in shown.items():
        table.add_column(
            Text(visible(columns[position])),
            justify="right" if is_numeric(texts) else "left",
            width=widths[position],
            overflow="fold",
        )
    for row in zip(*shown.values(), strict=True):
        fitting = zip(row, part, strict=True)
        table.add_row(*(Text(_fitted(text, widths[position])) for text, position in fitting))
    return table


def _widths(columns: Sequence[str], shown: dict[int, list[str]], width: int) -> dict[int, int]:
    """A width for each column: numbers have theirs, text shares the rest."""
    from rich.cells import cell_len

    whole = {
        position: max(map(cell_len, [*texts, *visible(columns[position]).split()]), default=1)
        for position, texts in shown.items()
    }
    least = {
        position: max(map(cell_len, texts), default=1)
        for position, texts in shown.items()
        if is_numeric(texts)
    }
    short = {
        position: min(whole[position], NARROWEST_NAME)
        for position in shown
        if position not in least
    }
    widths = least | short
    left = width - GAP * (len(shown) - 1) - sum(widths.values())
    # The headings' words and the names grow in step into what is left.
    while left > 0 and (growing := [at for at in shown if widths[at] < whole[at]]):
        for position in growing[:left]:
            widths[position] += 1
        left -= len(growing)
    return widths


def _fitted(text: str, width: int) -> str:
    """Text of at most `width` terminal cells; wide characters count two."""
    from rich.cells import cell_len

    length = len(text)
    while cell_len(short := middle_cut(text, length)) > width and length > 1:
        length -= 1
    return short
