"""Lists of songs: text files, tables, saved data sets and tar shards."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError, UsageError
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


def as_input(song: str | Input) -> Input:
    """A path as an input."""
    return song if isinstance(song, Input) else Input(song)


@dataclass(frozen=True)
class Songs:
    """The songs of a run.

    Args:
        sources: a path, or an `Input`, each. Plain paths stay plain: an object for each of a
            hundred thousand takes longer than all that a resume does with it.
        prompts: one per song, for models that read text; else None.

    Raises:
        UsageError: another number of prompts than songs.
    """

    sources: Sequence[str | Input]
    prompts: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        if self.prompts is not None and len(self.prompts) != len(self.sources):
            raise UsageError(
                f"{len(self.prompts)} prompts for {len(self.sources)} songs; expected one each"
            )

    @property
    def paths(self) -> list[str]:
        """The files."""
        return [song.path if isinstance(song, Input) else song for song in self.sources]

    @property
    def names(self) -> list[str | None]:
        """What rows have as `path`, where it is not the file."""
        return [song.name if isinstance(song, Input) else None for song in self.sources]

    def take(self, numbers: Sequence[int]) -> Songs:
        """Some of the songs, in the order of their numbers, without the columns of lists."""
        songs = [self.sources[number] for number in numbers]
        return Songs(
            [song._replace(columns={}) if isinstance(song, Input) else song for song in songs],
            None if self.prompts is None else [self.prompts[number] for number in numbers],
        )


def is_list(path: str) -> bool:
    """Whether a path is a file with the ending of a list."""
    return path.lower().endswith(LIST_ENDINGS) and os.path.isfile(path)


def read_list(path: str, songs: Path | None = None, beside: bool = False) -> list[Input] | None:
    """The songs of a list.

    A table has its paths in the column `audio`, or in `path` where there is no `audio`; its other
    columns stay with the song. A relative path is taken from the working directory, or from the
    list's folder where it exists only there. A cell without a path is a song that fails with its
    reason. Songs that lie in the table itself (an Audio column) are written into `songs`, or a
    temporary folder.

    Args:
        beside: the file stands among songs, as a shell's `*` gives it, where it may hold lyrics or
            notes. It is a list there if a line of text is a path that exists, or a table has a
            column of paths.

    Returns:
        None for a file beside songs that is no list.

    Raises:
        DataError: not readable as a list, or no such column.
    """
    try:
        if path.lower().endswith(".txt"):
            lines = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
            found = [Input(_near(path, line.strip())) for line in lines if line.strip()]
            is_none = beside and not any(os.path.lexists(song.path) for song in found)
            return None if is_none else found
        if path.lower().endswith(".parquet") and (inside := read_saved(path, songs)) is not None:
            return inside
        return _read_rows(path)
    except (OSError, DataError) as error:
        if beside:
            return None
        if isinstance(error, DataError):
            raise
        raise DataError(f"the list {path} cannot be read: {error}") from error


def _read_rows(path: str) -> list[Input]:
    rows = read_rows(path)
    key = next((name for name in PATH_COLUMNS if any(name in row for row in rows)), "")
    if rows and not key:
        there = ", ".join(rows[0]) or "none"
        raise DataError(f"the list {path} has no column 'audio' or 'path'; it has {there}")
    found = []
    for number, row in enumerate(rows, start=1):
        cell = row.pop(key, None)
        if isinstance(cell, int) and not isinstance(cell, bool):
            cell = str(cell)
        if isinstance(cell, str) and cell.strip():
            found.append(Input(_near(path, cell), row))
        else:
            held = None if cell is None else as_text(cell)
            reason = f"'{key}' holds {held or 'nothing'}; expected the path of a song"
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


def _near(path: str, entry: str) -> str:
    """An entry of a list: as it is, or beside the list where it exists only there."""
    beside = os.path.join(os.path.dirname(path), entry)
    return beside if not os.path.lexists(entry) and os.path.lexists(beside) else entry


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
        for key, group in groupby(_members(path), key=lambda member: member[0]):
            members = {ending: content for _, ending, content in group}
            found.append(_keyed(path, key, members, songs))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        if not found:
            raise DataError(f"{path} cannot be read as a tar shard: {error}") from error
        reason = f"is damaged behind '{found[-1].columns['key']}': {error}"
        found.append(Input(NoSong(path, reason)))
    return found


def _members(path: str) -> Iterator[tuple[str, str, bytes]]:
    """Key, ending and bytes of the members; the last one of a cut shard ends early.

    A name is split as WebDataset does: at the first dot behind its folder.
    """
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if not member.isfile() or (file := archive.extractfile(member)) is None:
                continue
            content = bytearray()
            with suppress(tarfile.ReadError, EOFError):
                while piece := file.read(PIECE):
                    content += piece
            folder, slash, name = member.name.rpartition("/")
            stem, dot, ending = name.partition(".")
            yield f"{folder}{slash}{stem}", f"{dot}{ending}".lower(), bytes(content)


def _keyed(path: str, key: str, members: Mapping[str, bytes], songs: Path | None) -> Input:
    columns: dict[str, Any] = {"shard": path, "key": key}
    ending = next((ending for ending in members if ending.endswith(AUDIO_ENDINGS)), None)
    problem = "holds no song" if ending is None else ""
    try:
        values = json.loads(members.get(".json", b"{}"))
        columns |= {name: value for name, value in values.items() if value is not None}
    except (ValueError, AttributeError):
        problem = f"'{key}.json' is no JSON object"
    if ".txt" in members:
        columns["prompt"] = members[".txt"].decode("utf-8", "replace").strip()
    if ending is None or problem:
        return Input(NoSong(f"{path}/{key}", problem), columns)
    file = song_file(f"{key}{ending}", members[ending], songs)
    return Input(file, columns, None if songs is not None else f"{path}/{key}{ending}")
