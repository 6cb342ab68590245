"""What to score: files, folders, globs and lists, as one flat list of paths in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.tables import read_jsonl, read_table

LIST_ENDINGS = (".txt", ".jsonl")


@dataclass(frozen=True)
class Source:
    """A song to score, and what its list says of it (`prompt`, `prompt_id`, ...)."""

    path: str
    columns: Mapping[str, Any] = field(default_factory=dict)


def find_songs(inputs: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """The songs to score; as `find_audio`, with the further columns of lists."""
    return [Source(path) for path in find_audio(inputs)]


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


def find_audio(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The paths to score, in the order of `inputs`; inside a folder or a glob, sorted.

    Args:
        inputs: each a file (of any ending), a folder (searched recursively for audio endings,
            through links too), a glob (`songs/**/*.wav`), or a list: a `.txt` with a path a line,
            or a `.jsonl` with the key `audio`. A relative path in a list is taken from the
            working directory, or from the list's folder where it exists only there.

    Returns:
        Paths as text, joined to the input as it was given. A path that cannot be read (missing,
        a broken link, a folder named like a song) is kept, so that it gets its row and reason.

    Raises:
        UsageError: nothing at all was found.
        DataError: a list that is not readable as one.
    """
    paths = [path for given in inputs for path in _expand(os.fspath(given))]
    if all(_is_unmatched_glob(path) for path in paths):
        raise UsageError(
            f"no audio found in {listed(inputs) or 'no inputs'}; give files, folders, globs, or a "
            f".txt or .jsonl list. Folders are searched for {', '.join(AUDIO_ENDINGS)}"
        )
    return paths


def _expand(given: str) -> list[str]:
    if os.path.isdir(given):
        return sorted(_walk(given, set()))
    if os.path.lexists(given):
        listing = given.lower().endswith(LIST_ENDINGS) and os.path.isfile(given)
        return _read_list(given) if listing else [given]
    if glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True)) or [given]
        return [path for match in matches for path in _matched(match, matches)]
    return [given]


def _is_unmatched_glob(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def _matched(match: str, matches: Sequence[str]) -> list[str]:
    """A glob's match; a folder counts unless the glob also lists what is in it (`**`)."""
    if not os.path.isdir(match):
        return [match]
    inside = match.rstrip(os.sep) + os.sep
    return [] if any(other.startswith(inside) for other in matches) else _expand(match)


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    """Audio paths under a folder; a folder that cannot be listed is yielded itself."""
    real = os.path.realpath(folder)
    if real in seen:  # a link back to a folder on the way here
        return
    try:
        names = os.listdir(folder)
    except OSError:
        yield folder
        return
    for name in names:
        path = os.path.join(folder, name)
        named_like_audio = name.lower().endswith(AUDIO_ENDINGS)
        if os.path.isdir(path):
            found = list(_walk(path, {*seen, real}))
            # An empty folder called song.wav is a mistake that the user should see.
            yield from found or ([path] if named_like_audio else [])
        elif named_like_audio:
            yield path


def _read_list(path: str) -> list[str]:
    try:
        entries = _jsonl_entries(path) if path.lower().endswith(".jsonl") else _text_entries(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from error
    beside = os.path.dirname(path)
    return [_resolve(entry, beside) for entry in entries]


def _text_entries(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _jsonl_entries(path: str) -> list[str]:
    entries = [row.get("audio") for row in read_jsonl(path)]
    bad = [n for n, entry in enumerate(entries, start=1) if not (entry and isinstance(entry, str))]
    if bad:
        raise DataError.listing(
            f"the list {path}", [f"entry {n} has no text under 'audio'" for n in bad[:20]]
        )
    return [entry for entry in entries if isinstance(entry, str)]


def _resolve(entry: str, folder: str) -> str:
    beside = os.path.join(folder, entry)
    return beside if not os.path.lexists(entry) and os.path.lexists(beside) else entry
