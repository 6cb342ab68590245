"""Lists of songs: a text file with a path a line, or a table with a column of paths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import DataError
from apex_reward.files.songs_inside import Unheard, read_songs_inside
from apex_reward.files.tables import read_jsonl, read_table

if TYPE_CHECKING:
    import pyarrow as pa

LIST_ENDINGS = (".txt", ".jsonl", ".csv", ".parquet")
PATH_COLUMNS = ("audio", "path")


@dataclass(frozen=True)
class Source:
    """A song to score, and what its list says of it (`prompt`, `prompt_id`, ...)."""

    path: str
    columns: Mapping[str, Any] = field(default_factory=dict)


def is_list(path: str) -> bool:
    """Whether a path is a file with the ending of a list."""
    return path.lower().endswith(LIST_ENDINGS) and os.path.isfile(path)


def read_list(path: str, songs: Path | None = None) -> list[Source]:
    """The songs of a list.

    A table has its paths in the column `audio`, or in `path` where there is no `audio`; its other
    columns stay with the song. A relative path is taken from the working directory, or from the
    list's folder where it exists only there. Songs that lie in the table itself (an Audio column)
    are written into `songs`, or a temporary folder, and found there.

    Raises:
        DataError: not readable as a list, no such column, or entries without a path.
    """
    beside = os.path.dirname(path)
    try:
        if path.lower().endswith(".txt"):
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
            return [Source(_resolve(line.strip(), beside)) for line in lines if line.strip()]
        inside = None if not path.lower().endswith(".parquet") else read_songs_inside(path, songs)
        if inside is not None:
            return sources_inside(path, inside)
        rows = _rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from error
    if not rows:
        return []
    key = next((name for name in PATH_COLUMNS if any(name in row for row in rows)), None)
    if key is None:
        there = ", ".join(rows[0]) or "none"
        raise DataError(f"the list {path} has no column 'audio' or 'path'; it has {there}")
    _check_entries(path, rows, key)
    return [
        Source(_resolve(row[key], beside), {k: v for k, v in row.items() if k != key})
        for row in rows
    ]


def read_saved(folder: str, songs: Path | None = None) -> list[Source]:
    """The songs of a data set that `save_to_disk` left, written as in `read_list`.

    Raises:
        DataError: not such a data set, or none of its columns holds songs.
    """
    table = read_songs_inside(folder, songs)
    return [] if table is None else sources_inside(folder, table)


def sources_inside(path: str, table: pa.Table) -> list[Source]:
    """The songs of a table that `read_songs_inside` read; an empty cell is a song that is not."""
    key = next(name for name in PATH_COLUMNS if name in table.column_names)
    return [
        Source(row.pop(key) or Unheard(f"{path}: row {number}", "holds no song"), row)
        for number, row in enumerate(table.to_pylist(), start=1)
    ]


def read_list_beside_songs(path: str, songs: Path | None = None) -> list[Source] | None:
    """As `read_list`, for a file among songs; None where it is no list but belongs to a song.

    A shell expands `*` to everything in a folder: lyrics, notes, metadata. A text file is a list
    there if one of its lines is a path that exists, a table if it has a column of paths.
    """
    try:
        sources = read_list(path, songs)
    except DataError:
        return None
    is_text = path.lower().endswith(".txt")
    if is_text and not any(_there(source.path) for source in sources):
        return None
    return sources


def _rows(path: str) -> Sequence[dict[str, Any]]:
    if path.lower().endswith(".jsonl"):
        return read_jsonl(path)
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def _check_entries(path: str, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    bad = [
        f"entry {number} has no text under '{key}'"
        for number, row in enumerate(rows, start=1)
        if not (row.get(key) and isinstance(row[key], str))
    ]
    if bad:
        more = [f"and {len(bad) - 20} more"] if len(bad) > 20 else []
        raise DataError.listing(f"the list {path}", [*bad[:20], *more])


def _resolve(entry: str, folder: str) -> str:
    beside = os.path.join(folder, entry)
    return beside if not _there(entry) and _there(beside) else entry


def _there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # a line of lyrics can be no name at all
        return False
