"""Lists of songs: text files, tables, saved data sets and tar shards."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError
from apex_reward.files.songs_inside import NoSong, read_songs_inside, song_file
from apex_reward.files.tables import as_text, read_rows

LIST_ENDINGS = (".txt", ".jsonl", ".csv", ".parquet")
PATH_COLUMNS = ("audio", "path")
PIECE = 1 << 20


class Input(NamedTuple):
    """A song to score.

    Attributes:
        path: of its file.
        columns: what its list holds beside the path (`prompt`, `prompt_id`, ...).
        name: what rows have as `path`; None: the path of the file.
    """

    path: str
    columns: Mapping[str, Any] = {}
    name: str | None = None


def is_list(path: str) -> bool:
    """Whether a path is a file with the ending of a list."""
    return path.lower().endswith(LIST_ENDINGS) and os.path.isfile(path)


def read_list(path: str, songs: Path | None = None) -> list[Input]:
    """The songs of a list.

    A table has its paths in the column `audio`, or in `path` where there is no `audio`; its other
    columns stay with the song. A relative path is taken from the working directory, or from the
    list's folder where it exists only there. A cell without a path is a song that fails with its
    reason. Songs that lie in the table itself (an Audio column) are written into `songs`, or a
    temporary folder.

    Raises:
        DataError: not readable as a list, or no such column.
    """
    beside = os.path.dirname(path)
    try:
        if path.lower().endswith(".txt"):
            text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
            return [
                Input(_beside(line.strip(), beside)) for line in text.split("\n") if line.strip()
            ]
        if path.lower().endswith(".parquet") and (inside := read_saved(path, songs)) is not None:
            return inside
        rows = read_rows(path)
    except OSError as error:
        raise DataError(f"the list {path} cannot be read: {error}") from error
    key = next((name for name in PATH_COLUMNS if any(name in row for row in rows)), None)
    if rows and key is None:
        there = ", ".join(rows[0]) or "none"
        raise DataError(f"the list {path} has no column 'audio' or 'path'; it has {there}")
    found = []
    for number, row in enumerate(rows, start=1):
        cell = row.pop(key or "", None)
        if isinstance(cell, int) and not isinstance(cell, bool):
            cell = str(cell)
        if isinstance(cell, str) and cell.strip():
            found.append(Input(_beside(cell, beside), row))
        else:
            held = "nothing" if cell is None or cell != cell else as_text(cell) or "nothing"
            reason = f"'{key}' holds {held}; expected the path of a song"
            found.append(Input(NoSong(f"{path}: row {number}", reason), row))
    return found


def read_saved(path: str, songs: Path | None = None) -> list[Input] | None:
    """The songs inside a saved data set or a Parquet file, written as files.

    None for a Parquet file whose `audio` or `path` holds no songs. Without a folder `songs` the
    files are temporary, so rows name the table's row.

    Raises:
        DataError: not such a data set, or none of its columns holds songs.
    """
    table = read_songs_inside(path, songs)
    if table is None:
        return None
    key = next(name for name in PATH_COLUMNS if name in table.column_names)
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        name, file = f"{path}: row {number}", row.pop(key)
        kept = None if songs is not None or file is None else name
        found.append(Input(file or NoSong(name, "holds no song"), row, kept))
    return found


def read_list_beside_songs(path: str, songs: Path | None = None) -> list[Input] | None:
    """As `read_list`, for a file among songs; None where it is no list but belongs to a song.

    A shell expands `*` to everything in a folder: lyrics, notes, metadata. A text file is a list
    there if one of its lines is a path that exists, a table if it has a column of paths.
    """
    try:
        sources = read_list(path, songs)
    except DataError:
        return None
    is_text = path.lower().endswith(".txt")
    return None if is_text and not any(_there(source.path) for source in sources) else sources


def _beside(entry: str, folder: str) -> str:
    beside = os.path.join(folder, entry)
    return beside if not _there(entry) and _there(beside) else entry


def _there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # a line of lyrics can be no name at all
        return False


def read_tar(path: str, songs: Path | None = None) -> list[Input]:
    """The songs of a tar shard in WebDataset's layout, read once from its beginning to its end.

    Of members `KEY.wav` (or another audio ending), `KEY.json` and `KEY.txt` the first is the song,
    the second its further columns and the third its `prompt`. Each song is written as a file into
    `songs`, or a temporary folder; then rows name the member. Nothing is unpacked to where an
    archive asks for it.

    Returns:
        An input per key, in the shard's order, with `key` and `shard` among its columns. A key
        without a song, and the place where a damaged shard ends, are inputs that say so.

    Raises:
        DataError: no tar file.
    """
    found: list[Input] = []
    try:
        for key, group in groupby(_members(path), key=lambda member: _parts(member[0])[0]):
            members = {_parts(name)[1]: content for name, content in group}
            found.append(_keyed(path, key, members, songs))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        if not found:
            raise DataError(f"{path} cannot be read as a tar shard: {error}") from error
        reason = f"is damaged behind '{found[-1].columns['key']}': {error}"
        found.append(Input(NoSong(path, reason)))
    return found


def _members(path: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the members; the last one of a cut shard ends early."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if not member.isfile() or (file := archive.extractfile(member)) is None:
                continue
            content = bytearray()
            try:
                while piece := file.read(PIECE):
                    content += piece
            except (tarfile.ReadError, EOFError):
                pass
            yield member.name, bytes(content)


def _parts(name: str) -> tuple[str, str]:
    """Key and ending of a member, as WebDataset splits them: at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _keyed(path: str, key: str, members: Mapping[str, bytes], songs: Path | None) -> Input:
    columns: dict[str, Any] = {"shard": path, "key": key}
    problem = ""
    if ".json" in members:
        try:
            values = json.loads(members[".json"])
            columns |= {name: value for name, value in values.items() if value is not None}
        except (ValueError, AttributeError):
            problem = f"'{key}.json' is no JSON object"
    if ".txt" in members:
        columns["prompt"] = members[".txt"].decode("utf-8", "replace").strip()
    ending = next((ending for ending in members if ending.endswith(AUDIO_ENDINGS)), None)
    if ending is None:
        problem = problem or "holds no song"
    if problem:
        return Input(NoSong(f"{path}/{key}", problem), columns)
    name = f"{key}{ending}"
    kept = None if songs is not None else f"{path}/{name}"
    return Input(song_file(name, members[ending or ""], songs), columns, kept)
