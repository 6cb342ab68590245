"""What to score: files, folders, globs and lists, as one flat list of paths in a fixed order."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.songs_inside import Unheard, is_saved_dataset
from apex_reward.files.tables import read_table
from apex_reward.scoring.addresses import fetched, is_address
from apex_reward.scoring.folders import songs_in, songs_matching
from apex_reward.scoring.lists import (
    LIST_ENDINGS,
    Source,
    is_list,
    read_list,
    read_list_beside_songs,
    read_saved,
)
from apex_reward.scoring.tar_shards import is_tar, read_tar

__all__ = ["Source", "find_audio", "find_songs", "prompts_of"]


def find_songs(inputs: Sequence[str | os.PathLike[str]], songs: Path | None = None) -> list[Source]:
    """The songs to score, in the order of `inputs`; inside a folder or a glob, sorted.

    Args:
        inputs: each a file (of any ending), a folder (searched recursively for audio endings,
            through links too, each folder once), a data set that `save_to_disk` left, a glob
            (`songs/**/*.wav`), a tar shard in WebDataset's layout, an address (`hf://...`) of one
            of these, or a list: a `.txt` with a path a line, or a `.jsonl`, `.csv` or
            `.parquet` table with a column `audio` or `path`, of paths or of songs (an Audio
            column). A relative path in a list is taken from the working directory, or from the
            list's folder where it exists only there. Where other inputs are songs or folders, a
            `.txt` without a path that exists, and a table without a column of paths, are lyrics or
            notes beside songs, as a shell's `*` gives them: they are left out with a warning.
        songs: where songs that lie inside tables and data sets (an Audio column) are written as
            files; None: a folder that goes when the process ends.

    Returns:
        Paths as text, joined to the input as it was given, with the further columns of lists. A
        path that cannot be read (missing, a broken link, a folder named like a song) is kept, so
        that it gets its row and reason.

    Raises:
        UsageError: nothing at all was found.
        DataError: a list that is not readable as one.
    """
    given = [os.fspath(item) for item in inputs]
    lists = [path for path in given if is_list(path)]
    beside = len(lists) < len(given)
    aside: list[str] = []
    found: list[Source] = []
    for path in given:
        sources = _expand(path, beside, songs)
        if sources is None:
            aside.append(path)
        else:
            found += sources
    if aside:
        warnings.warn(f"no lists of songs, left out: {listed(aside)}", stacklevel=2)
    if all(_is_unmatched_glob(source.path) for source in found):
        raise UsageError(
            f"no audio found in {listed(given) or 'no inputs'}; give files, folders, globs, or a "
            f"list ({', '.join(LIST_ENDINGS)}). Folders are searched for {', '.join(AUDIO_ENDINGS)}"
        )
    return found


def find_audio(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The paths of `find_songs`."""
    return [source.path for source in find_songs(inputs)]


def _expand(given: str, beside: bool, songs: Path | None) -> list[Source] | None:
    """The songs of one input; None for a file beside songs that is none itself."""
    if isinstance(given, Unheard):
        return [Source(given)]
    if is_address(given):
        return _expand_address(given, songs)
    if is_tar(given):
        return read_tar(given, songs)
    if is_saved_dataset(given):
        return read_saved(given, songs)
    if os.path.isdir(given):
        return [Source(path) for path in songs_in(given)]
    if is_list(given):
        return read_list_beside_songs(given, songs) if beside else read_list(given, songs)
    if glob.has_magic(given) and not os.path.lexists(given):
        return [Source(path) for path in songs_matching(given) or [given]]
    return [Source(given)]


def _expand_address(given: str, songs: Path | None) -> list[Source]:
    """Songs of what an address names; each says where it came from."""
    return [
        Source(source.path, {"source": address, **source.columns})
        for address, file in fetched(given, songs)
        for source in _expand(file, False, songs) or ()
    ]


def _is_unmatched_glob(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def prompts_of(sources: Sequence[Source], table: Path | None, needed: bool) -> list[str] | None:
    """A prompt per source: from a table by path or file name, else from the source's list.

    Args:
        table: rows with `audio` or `path`, and `prompt`.
        needed: whether a model reads prompts; a song without one is then an error.

    Raises:
        DataError: a table without these columns, or songs without a prompt, listed together.
    """
    if not needed:
        return None
    by_name = _prompt_table(table) if table is not None else {}
    found = [
        by_name.get(source.path)
        or by_name.get(os.path.basename(source.path))
        or source.columns.get("prompt")
        for source in sources
    ]
    lacking = [source.path for source, text in zip(sources, found, strict=True) if text is None]
    if lacking:
        raise DataError(
            f"{len(lacking)} songs have no prompt, which the model judges them by: "
            f"{listed(lacking, 4)}; give --prompts FILE or lists with a column 'prompt'"
        )
    return [str(text) for text in found]


def _prompt_table(path: Path) -> dict[str, str]:
    """Prompts by path and by file name."""
    table = read_table(path)
    key = next((name for name in ("audio", "path") if name in table.column_names), None)
    if key is None or "prompt" not in table.column_names:
        raise DataError(f"{path} needs the columns 'audio' (or 'path') and 'prompt'")
    found: dict[str, str] = {}
    for row in table.select([key, "prompt"]).to_pylist():
        name = str(row[key])
        found[name] = row["prompt"] or ""
        found.setdefault(os.path.basename(name), row["prompt"] or "")
    return found
