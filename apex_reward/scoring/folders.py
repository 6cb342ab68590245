"""Songs of folders and globs, each once, in a fixed order."""

from __future__ import annotations

import glob
import os
from bisect import bisect_left

from apex_reward.audio import AUDIO_ENDINGS

SIDE_FOLDERS = frozenset({"__MACOSX", "__pycache__", "@eaDir"})
"""Folders that archives and file servers leave, with files named like the songs beside them."""


def songs_in(folder: str) -> list[str]:
    """Audio paths under a folder, sorted.

    Folders are searched recursively, links to folders too, but every folder once, so that links
    that point at each other list no song twice. Left out are files and folders beginning with
    `._` and the folders in `SIDE_FOLDERS`. A folder that cannot be listed is listed itself.
    """
    walk = _Walk()
    walk.folder(folder)
    while walk.links:  # after the folders themselves: a song keeps its shortest way
        links, walk.links = sorted(walk.links), []
        for link in links:
            walk.folder(link)
    return sorted(walk.found)


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


def _holds_one(folder: str, matches: list[str]) -> bool:
    inside = folder.rstrip(os.sep) + os.sep
    after = bisect_left(matches, inside)
    after += after < len(matches) and matches[after] == inside  # `a/**` matches `a/` itself
    return after < len(matches) and matches[after].startswith(inside)


def _is_side(path: str) -> bool:
    parts = path.split(os.sep)
    return parts[-1].startswith("._") or not SIDE_FOLDERS.isdisjoint(parts)


class _Walk:
    """Songs found, links to folders still to follow, and folders seen, by device and inode."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.links: list[str] = []
        self._seen: set[tuple[int, int]] = set()

    def folder(self, folder: str) -> bool:
        """Add what is under a folder; whether that was anything."""
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in self._seen:
                return True
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            self.found.append(folder)
            return True
        before = len(self.found), len(self.links)
        for entry in entries:
            if not entry.name.startswith("._") and entry.name not in SIDE_FOLDERS:
                self._entry(entry)
        return (len(self.found), len(self.links)) != before

    def _entry(self, entry: os.DirEntry[str]) -> None:
        named_like_audio = entry.name.lower().endswith(AUDIO_ENDINGS)
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if is_folder and entry.is_symlink():
            self.links.append(entry.path)
        elif is_folder:
            # An empty folder called song.wav is a mistake that the user should see.
            if not self.folder(entry.path) and named_like_audio:
                self.found.append(entry.path)
        elif named_like_audio:
            self.found.append(entry.path)
