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
from apex_reward.files.tables import read_table
from apex_reward.prompt import Prompt, prompt_of
from apex_reward.scoring.folders import TAR_ENDINGS, fetched, is_address, songs_in, songs_matching
from apex_reward.scoring.lists import (
    LIST_ENDINGS,
    PATH_COLUMNS,
    Input,
    is_list,
    read_list,
    read_list_beside_songs,
    read_saved,
    read_tar,
)

__all__ = ["Input", "find_audio", "find_songs", "prompts_for"]


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
    return [Input(song) if isinstance(song, str) else song for song in _found(inputs, songs)]


def find_audio(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The paths of `find_songs`."""
    return [song if isinstance(song, str) else song.path for song in _found(inputs, None)]


def _found(inputs: Sequence[str | os.PathLike[str]], songs: Path | None) -> list[str | Input]:
    """Songs that have columns or a name of their own as inputs, others as paths."""
    given = [os.fspath(item) for item in inputs]
    beside = not all(map(is_list, given))
    aside: list[str] = []
    found: list[str | Input] = []
    for path in given:
        sources = _expand(path, beside, songs)
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


def _expand(given: str, beside: bool, songs: Path | None) -> Sequence[str | Input] | None:
    """The songs of one input; None for a file beside songs that is none itself."""
    found: Sequence[str | Input] | None = [given]
    if isinstance(given, NoSong):
        pass
    elif is_address(given):
        found = [
            _at_address(source, address, songs is not None)
            for address, file in fetched(given, songs)
            for source in _expand(file, False, songs) or ()
        ]
    elif given.lower().endswith(TAR_ENDINGS):
        found = read_tar(given, songs)
    elif is_saved_dataset(given):
        found = read_saved(given, songs)
    elif os.path.isdir(given):
        found = songs_in(given)
    elif is_list(given):
        found = read_list_beside_songs(given, songs) if beside else read_list(given, songs)
    elif glob.has_magic(given) and not os.path.lexists(given):
        found = songs_matching(given) or [given]
    return found


def _at_address(song: str | Input, address: str, kept: bool) -> Input:
    """The song of an address; where its file is not kept, rows name the address."""
    path, columns, name = Input(song) if isinstance(song, str) else song
    return Input(path, {"source": address, **columns}, name or (None if kept else address))


def prompts_for(sources: Sequence[Input], table: Path | None = None) -> list[Prompt]:
    """A prompt with its lyrics per song: from a table by path or file name, else from its list.

    A song that only others have a prompt for gets an empty one; the model decides what it earns.

    Args:
        table: rows with `audio` or `path`, and `prompt` or `lyrics`.

    Raises:
        DataError: a table without these columns, or no song with a prompt or lyrics.
    """
    texts: dict[str, Prompt] = {}
    if table is not None:
        rows = read_table(table)
        key = next((name for name in PATH_COLUMNS if name in rows.column_names), None)
        names = {"prompt", "lyrics"} & set(rows.column_names)
        if key is None or not names:
            raise DataError(f"{table} needs the columns 'audio' (or 'path') and 'prompt'")
        for row in rows.select([key, *names]).to_pylist():
            prompt = prompt_of(row.get("prompt"), row.get("lyrics"))
            if prompt or prompt.lyrics:
                texts[str(row[key])] = prompt
                texts.setdefault(os.path.basename(str(row[key])), prompt)
    found = []
    for path, columns, _ in sources:
        own = prompt_of(columns.get("prompt"), columns.get("lyrics"))
        found.append(texts.get(path, texts.get(os.path.basename(path), own)))
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
    columns = [source.columns for source in sources]
    if table is None and all(row.get("prompt_id") is not None for row in columns):
        return [str(row["prompt_id"]) for row in columns]
    if table is None and not any(row.get("prompt") for row in columns):
        return None
    return [prompt.strip() for prompt in prompts_for(sources, table)]
