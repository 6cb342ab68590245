"""In a notebook: rows as a small table in which songs play, and a bar while one waits."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, overload

from apex_reward.report.songs import EMBED_BYTES, Player, embedded

SONGS = ("path", "audio", "chosen", "rejected", "audio_a", "audio_b")
MOST_ROWS = 20
Item = TypeVar("Item")


class Rows(list[dict[str, Any]]):
    """Rows of songs, pairs or drops: a list that a notebook shows as a table with players."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: SupportsIndex | slice) -> dict[str, Any] | Rows:
        found = super().__getitem__(index)
        return Rows(found) if isinstance(found, list) else found

    def _repr_html_(self) -> str:
        return rows_html(self)


def with_bar(items: Iterable[Item], total: int, name: str) -> Iterable[Item]:
    """The items, with a bar of how many are done in a notebook; elsewhere as they are."""
    if not in_notebook():
        return items
    from tqdm.auto import tqdm

    bar: Iterable[Item] = tqdm(items, total=total, desc=name, leave=False)
    return bar


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    interactive = sys.modules.get("IPython")
    shell = None if interactive is None else interactive.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def rows_html(rows: Sequence[Mapping[str, Any]], limit: int = MOST_ROWS) -> str:
    """A table of rows as HTML, for `_repr_html_`.

    Args:
        rows: rows as `score`, `pairs` or a battle table have them; in the columns `SONGS` a path of
            a file is a player, with the song inside the text while all fit in `EMBED_BYTES`.
        limit: how many rows are shown.

    Returns:
        One element, all names escaped.
    """
    from apex_reward.report.page import render  # it draws: matplotlib

    shown = rows[:limit]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    room = EMBED_BYTES
    table: list[list[Any]] = []
    for row in shown:
        cells = []
        for column in columns:
            value = row.get(column)
            if column in SONGS and isinstance(value, (str, Path)) and Path(value).is_file():
                size = Path(value).stat().st_size
                if size <= room:
                    room -= size
                    value = Player(str(value), embedded(Path(value)), f"{column}: {value}")
            cells.append(value)
        table.append(cells)
    return render(
        "report/templates/rows.html", columns=columns, rows=table, left=len(rows) - len(shown)
    )
