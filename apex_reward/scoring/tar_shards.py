"""Songs in tar shards of WebDataset's layout: members that share a name up to its first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError
from apex_reward.files.songs_inside import Unheard, song_file
from apex_reward.scoring.lists import Source

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
PIECE = 1 << 20


def is_tar(path: str) -> bool:
    """Whether a path ends as a tar shard does."""
    return path.lower().endswith(TAR_ENDINGS)


def read_tar(path: str, songs: Path | None = None) -> list[Source]:
    """The songs of a shard, read once from its beginning to its end.

    Of members `KEY.wav` (or another audio ending), `KEY.json` and `KEY.txt` the first is the song,
    the second its further columns and the third its `prompt`. Each song is written as a file into
    `songs`, or a temporary folder. Names are read, never followed: nothing is unpacked to where an
    archive says.

    Returns:
        A source per key, in the shard's order, with `key` and `shard` among its columns. A key
        without a song, and the place where a damaged shard ends, are sources that say so.

    Raises:
        DataError: no tar file.
    """
    found: list[Source] = []
    try:
        for key, group in groupby(_members(path), key=lambda member: _parts(member[0])[0]):
            members = {_parts(name)[1]: content for name, content in group}
            found.append(_source(path, key, members, songs))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        if not found:
            raise DataError(f"{path} cannot be read as a tar shard: {error}") from error
        reason = f"is damaged behind '{found[-1].columns['key']}': {error}"
        found.append(Source(Unheard(path, reason)))
    return found


def _members(path: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, _content(file)


def _content(file: IO[bytes]) -> bytes:
    """What there is of a member: the last one of a cut shard ends early, and says so when heard."""
    content = bytearray()
    try:
        while piece := file.read(PIECE):
            content += piece
    except (tarfile.ReadError, EOFError):
        pass
    return bytes(content)


def _parts(name: str) -> tuple[str, str]:
    """Key and ending of a member, as WebDataset splits them: at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _source(path: str, key: str, members: Mapping[str, bytes], songs: Path | None) -> Source:
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
        return Source(Unheard(f"{path}/{key}", problem), columns)
    return Source(song_file(f"{key}{ending}", members[ending or ""], songs), columns)
