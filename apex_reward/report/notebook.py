"""Rows in a notebook: a small table in which songs play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.report.page import render
from apex_reward.report.songs import EMBED_BYTES, Player, embedded

SONGS = ("path", "audio", "chosen", "rejected", "audio_a", "audio_b")
MOST_ROWS = 20


def rows_html(rows: Sequence[Mapping[str, Any]], limit: int = MOST_ROWS) -> str:
    """A table of rows as HTML, for `_repr_html_`.

    Args:
        rows: rows as `score`, `pairs` or a battle table have them; in the columns `SONGS` a path of
            a file is a player, with the song inside the text while all fit in `EMBED_BYTES`.
        limit: how many rows are shown.

    Returns:
        One element, all names escaped.
    """
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
