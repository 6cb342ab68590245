"""What to score: files, folders, globs, lists, shards and addresses, as one list of inputs."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.songs_inside import NoSong, is_saved_dataset
from apex_reward.files.tables import read_rows
from apex_reward.prompt import Prompt, prompt_of
from apex_reward.rewards.groups import prompt_keys
from apex_reward.scoring.folders import ADDRESS, TAR_ENDINGS, fetched, songs_in, songs_matching
from apex_reward.scoring.lists import (
    LIST_ENDINGS,
    PATH_COLUMNS,
    Input,
    Songs,
    as_input,
    is_list,
    read_list,
    read_saved,
    read_tar,
)

__all__ = ["Input", "find_audio", "find_songs", "groups_for", "prompts_for"]


def find_songs(inputs: Sequence[str | os.PathLike[str]], songs: Path | None = None) -> list[Input]:
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
            files; None: a folder that is removed when the process ends.

    Returns:
        Inputs with their paths, joined to the input as it was given, and the further columns of
        lists. A path that cannot be read (missing, a broken link, a folder named like a song) is
        kept, so that it gets its row and reason.

    Raises:
        UsageError: no song in any input.
        DataError: a list that is not readable as one.
    """
    return list(map(as_input, _found(inputs, songs)))


def find_audio(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The paths of `find_songs`."""
    return Songs(_found(inputs, None)).paths


def _found(inputs: Sequence[str | os.PathLike[str]], songs: Path | None) -> list[str | Input]:
    """The songs of all inputs; those without columns and names are plain paths."""
    given = [os.fspath(item) for item in inputs]
    beside = not all(map(is_list, given))
    aside: list[str] = []
    found: list[str | Input] = []
    for path in given:
        sources = _expanded(path, songs, beside)
        if sources is None:
            aside.append(path)
        else:
            found += sources
    if aside:
        warnings.warn(f"no lists of songs, left out: {listed(aside)}", stacklevel=3)
    if all(
        isinstance(song, str) and glob.has_magic(song) and not os.path.lexists(song)
        for song in found
    ):
        raise UsageError(
            f"no audio found in {listed(given) or 'no inputs'}; give files, folders, globs, or a "
            f"list ({', '.join(LIST_ENDINGS)}). Folders are searched for {', '.join(AUDIO_ENDINGS)}"
        )
    return found


def _expanded(given: str, songs: Path | None, beside: bool = False) -> Sequence[str | Input] | None:
    """The songs of one input; None for a list beside songs that is none."""
    if isinstance(given, NoSong):
        return [given]
    if ADDRESS.match(given):
        return [
            song._replace(
                columns={"source": address, **song.columns},
                name=song.name or (address if songs is None else None),
            )
            for address, file in fetched(given, songs)
            for song in map(as_input, _expanded(file, songs) or ())
        ]
    if given.lower().endswith(TAR_ENDINGS):
        return read_tar(given, songs)
    if is_saved_dataset(given):
        return read_saved(given, songs)
    if is_list(given):
        return read_list(given, songs, beside)
    if os.path.isdir(given):
        return songs_in(given)
    if glob.has_magic(given) and not os.path.lexists(given):
        return songs_matching(given) or [given]
    return [given]


def prompts_for(sources: Sequence[Input], table: Path | None = None) -> list[Prompt]:
    """A prompt with its lyrics per song: from a table by path or file name, else from its list.

    A file name counts where all rows of that name have one prompt. A song that only others have a
    prompt for gets an empty one; the model decides what it earns.

    Args:
        table: rows with `audio` or `path`, and `prompt` or `lyrics`.

    Raises:
        DataError: a table without these columns, or no song with a prompt or lyrics.
    """
    exact: dict[str, Prompt] = {}
    named: dict[str, dict[tuple[str, str | None], Prompt]] = {}
    rows = [] if table is None else read_rows(table)
    names = {name for row in rows for name in row}
    key = next((name for name in PATH_COLUMNS if name in names), None)
    if table is not None and (key is None or names.isdisjoint({"prompt", "lyrics"})):
        raise DataError(f"{table} needs the columns 'audio' (or 'path') and 'prompt'")
    for row in rows:
        prompt, path = prompt_of(row.get("prompt"), row.get("lyrics")), str(row.get(key or ""))
        exact[path] = prompt
        named.setdefault(os.path.basename(path), {})[prompt, prompt.lyrics] = prompt
    found = []
    for song in sources:
        own = prompt_of(song.columns.get("prompt"), song.columns.get("lyrics"))
        alike = [*named.get(os.path.basename(song.path), {}).values()]
        text = exact.get(song.path, alike[0] if len(alike) == 1 else own)
        found.append(text if text or text.lyrics else own)
    if not any(prompt.strip() or prompt.lyrics for prompt in found):
        raise DataError(
            "no song has a prompt, and the model judges songs by their prompts; give --prompts "
            "FILE, or lists with a column 'prompt' or 'lyrics'"
        )
    return found


def groups_for(sources: Sequence[Input], table: Path | None = None) -> list[str] | None:
    """The prompt that each song belongs to: its `prompt_id`, else its prompt.

    Args:
        table: as in `prompts_for`.

    Returns:
        None where no song has a prompt.
    """
    if table is None:
        ids = [song.columns.get("prompt_id") for song in sources]
        if None not in ids:
            return list(map(str, ids))
        if not any(song.columns.get("prompt") for song in sources):
            return None
    return prompt_keys(prompts_for(sources, table))
