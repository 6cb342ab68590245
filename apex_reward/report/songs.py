"""Songs in pages and notebooks: inside the page while they are small, else copied beside it."""

from __future__ import annotations

import base64
import mimetypes
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from apex_reward.files.atomic import atomic
from apex_reward.report.cells import Player

EMBED_BYTES = 16_000_000
"""A page embeds its songs when all of them together are at most this large."""
COPY_BYTES = 2_000_000_000
"""Otherwise songs are copied beside the page, the first ones first, up to this size."""
BESIDE = "report_files"
SONGS = ("path", "audio", "chosen", "rejected", "audio_a", "audio_b")
MOST_ROWS = 20
Item = TypeVar("Item")


def embedded(file: Path) -> str:
    """A file as a `data:` address."""
    kind = mimetypes.guess_type(file.name)[0] or "audio/mpeg"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def place_songs(files: Sequence[Path | None], folder: Path) -> tuple[list[str | None], str]:
    """Addresses of songs for a page in `folder`.

    Args:
        files: the songs, the most important first; None for a missing one.
        folder: the folder of the page. Its subfolder `report_files/` is replaced.

    Returns:
        An address per song (None for None), and a sentence about songs that were not copied. It is
        empty when the folder works anywhere.
    """
    beside = folder / BESIDE
    sizes = [0 if file is None else file.stat().st_size for file in files]
    if sum(sizes) <= EMBED_BYTES:
        shutil.rmtree(beside, ignore_errors=True)
        return [None if file is None else embedded(file) for file in files], ""
    sources: list[str | None] = []
    used = left = 0
    with atomic(beside) as work:
        work.mkdir()
        for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
            if file is None:
                sources.append(None)
            elif used + size <= COPY_BYTES:
                used += size
                name = _copy_name(number, file)
                shutil.copyfile(file, work / name)
                sources.append(f"{BESIDE}/{name}")
            else:
                left += 1
                path = os.path.relpath(file.resolve(), folder.resolve())
                sources.append(quote(path.replace(os.sep, "/")))
    note = f"{left} songs were too large to copy. The page plays them from their own folder."
    return sources, note if left else ""


def players(
    songs: Iterable[tuple[str, Path | None, str]], folder: Path
) -> tuple[list[Player], str]:
    """Players of songs for a page in `folder`, and the sentence of `place_songs`.

    Args:
        songs: label, file (None for a missing one) and description of each.
    """
    found = list(songs)
    sources, note = place_songs([file for _, file, _ in found], folder)
    made = zip(found, sources, strict=True)
    return [Player(label, source, about) for (label, _, about), source in made], note


def _copy_name(number: int, file: Path) -> str:
    """A file name that every file system and address accepts without quoting."""
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", file.stem)[:60].strip("_")
    ending = re.sub(r"[^A-Za-z0-9.]+", "", file.suffix)
    return f"{number:05d}-{stem}{ending}" if stem else f"{number:05d}{ending}"


class Rows(list[dict[str, Any]]):
    """Rows of songs, pairs or drops: a list that a notebook shows as a table with players."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Rows(found) if isinstance(found, list) else found

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`, a row per row and a column per name."""
        return import_module("pandas").DataFrame(list(self))

    def _repr_html_(self) -> str:
        return rows_html(self)


def rows_html(rows: Sequence[Mapping[str, Any]], limit: int = MOST_ROWS) -> str:
    """A table of rows as one HTML element, all names escaped.

    Args:
        rows: rows as `score`, `pairs` or a table of battles have them. A path of a file in one of
            the columns `SONGS` becomes a player, while all files together fit in `EMBED_BYTES`.
        limit: the largest number of rows in the table.
    """
    from apex_reward.report.document import render  # it loads matplotlib

    shown = [dict(row) for row in rows[:limit]]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    room = EMBED_BYTES
    for row in shown:
        for name in SONGS:
            file = row.get(name)
            if not isinstance(file, (str, Path)) or not Path(file).is_file():
                continue
            if (size := Path(file).stat().st_size) <= room:
                room -= size
                row[name] = Player(str(file), embedded(Path(file)), f"{name}: {file}")
    table = [[row.get(name) for name in columns] for row in shown]
    left = len(rows) - len(shown)
    return render("report/templates/rows.html", columns=columns, rows=table, left=left)


def with_bar(items: Iterable[Item], total: int, name: str) -> Iterable[Item]:
    """The items with a progress bar in a notebook; without one elsewhere."""
    if not in_notebook():
        return items
    from tqdm.auto import tqdm

    bar: Iterable[Item] = tqdm(items, total=total, desc=name, leave=False)
    return bar


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    interactive = sys.modules.get("IPython")
    shell = None if interactive is None else interactive.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
