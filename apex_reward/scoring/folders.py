"""Songs of folders, globs and addresses, each once, in a fixed order."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import fsspec

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError
from apex_reward.files.atomic import atomic
from apex_reward.files.songs_inside import NoSong, songs_folder

SIDE_FOLDERS = frozenset({"__MACOSX", "__pycache__", "@eaDir"})
"""Folders that archives and file servers leave, with files named like the songs beside them."""
ENDINGS = frozenset(AUDIO_ENDINGS)
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")


def songs_in(folder: str) -> list[str]:
    """Audio paths under a folder, sorted.

    Folders are searched recursively, links to folders too, but every folder once, so that links
    that point at each other list no song twice. Left out are files and folders beginning with
    `._` and the folders in `SIDE_FOLDERS`. A folder that cannot be listed is listed itself; so is
    an empty folder that is named like a song.
    """
    found: list[str] = []
    named: list[str] = []  # folders with the ending of a song
    seen: set[tuple[int, int]] = set()
    starts = [folder]

    def not_listed(error: OSError) -> None:
        found.append(error.filename)

    while starts:
        links: list[str] = []
        for start in starts:
            for place, folders, files in os.walk(start, onerror=not_listed):
                status = os.stat(place)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                beginning = os.path.join(place, "")
                found += [beginning + name for name in filter(_is_song, files)]
                folders[:] = [n for n in folders if n[:2] != "._" and n not in SIDE_FOLDERS]
                inside = [os.path.join(place, name) for name in folders]
                named += filter(_is_song, inside)
                links += filter(os.path.islink, inside)
        starts = sorted(links)  # after the folders themselves: a song keeps its shortest path
    found.sort()
    empty = [folder for folder in named if not _holds_one(folder, found)]
    return sorted(found + empty) if empty else found


def _is_song(path: str) -> bool:
    return path[path.rfind(".") :].lower() in ENDINGS and path[:2] != "._"


def songs_matching(pattern: str) -> list[str]:
    """What a glob matches, sorted; a folder stands for its songs unless the glob lists them."""
    matches = sorted(path for path in glob.glob(pattern, recursive=True) if not _is_side(path))
    found = []
    for match in matches:
        if not os.path.isdir(match):
            found.append(match)
        elif not _holds_one(match, matches):
            found += songs_in(match)
    return found


def _holds_one(folder: str, paths: list[str]) -> bool:
    inside = folder.rstrip(os.sep) + os.sep
    after = bisect_left(paths, inside)
    after += after < len(paths) and paths[after] == inside  # `a/**` matches `a/` itself
    return after < len(paths) and paths[after].startswith(inside)


def _is_side(path: str) -> bool:
    parts = path.split(os.sep)
    return parts[-1].startswith("._") or not SIDE_FOLDERS.isdisjoint(parts)


def fetched(address: str, songs: Path | None = None) -> Iterator[tuple[str, str]]:
    """What an address names, as files here: (its address, the file) in order of the addresses.

    A folder and a glob stand for their songs and tar shards, a file for itself. A file that is here
    already, from a run before, is not fetched again. A song that does not exist is `NoSong`.

    Args:
        address: `hf://datasets/USER/NAME/folder`, or another that fsspec has a file system for.
        songs: folder of the files; None: a temporary one.

    Raises:
        DataError: nothing there, or it cannot be reached.
    """
    endings = (*AUDIO_ENDINGS, *TAR_ENDINGS)
    try:
        system, path = fsspec.core.url_to_fs(address)
        names = [path]
        if glob.has_magic(path):
            names = sorted(system.glob(path))
        elif system.isdir(path):
            names = [name for name in sorted(system.find(path)) if name.lower().endswith(endings)]
        for name in names:
            source = system.unstrip_protocol(name)
            digest = hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
            plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name.rpartition("/")[2])[-80:]
            file = songs_folder(songs) / f"{digest}-{plain}"
            if not file.is_file():
                with atomic(file) as temporary:
                    system.get_file(name, str(temporary))
            yield source, str(file)
    except FileNotFoundError:
        if not address.lower().endswith(AUDIO_ENDINGS):
            raise DataError(f"{address} does not exist") from None
        yield address, NoSong(address, "does not exist")
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{address} cannot be read: {error or type(error).__name__}") from error
