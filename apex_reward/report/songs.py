"""Songs that a page plays: inside it while they are small, copied beside it when they are not."""

from __future__ import annotations

import base64
import mimetypes
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

EMBED_BYTES = 16_000_000
"""Songs are embedded when all of a page fit in this together."""
COPY_BYTES = 2_000_000_000
"""Songs are copied beside the page, the first ones first, up to this; the rest stay in place."""
BESIDE = "report_files"


@dataclass(frozen=True)
class Player:
    """A song in a table: a page plays it, other tables show its label.

    Attributes:
        label: what is shown, usually the path as it was given.
        source: the address for the page; None where there is no file.
        about: what those who can't see the page hear, such as `chosen, prompt 3`.
    """

    label: str
    source: str | None
    about: str = ""

    def __str__(self) -> str:
        return self.label


def embedded(file: Path) -> str:
    """A file as a `data:` address."""
    kind = mimetypes.guess_type(file.name)[0] or "audio/mpeg"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def place_songs(files: Sequence[Path | None], folder: Path) -> tuple[list[str | None], str]:
    """Addresses of songs for a page in `folder`.

    Args:
        files: the songs in order of their importance; None for one that is not there.
        folder: where the page is. `report_files/` in it is this function's: earlier contents go.

    Returns:
        An address per song (None for None), and a sentence about songs that stayed where they are:
        empty when the folder can be moved anywhere.
    """
    beside = folder / BESIDE
    shutil.rmtree(beside, ignore_errors=True)
    sizes = [0 if file is None else file.stat().st_size for file in files]
    if sum(sizes) <= EMBED_BYTES:
        return [None if file is None else embedded(file) for file in files], ""
    work = folder / f".{BESIDE}.{os.getpid()}.tmp"
    sources: list[str | None] = []
    used = left = 0
    try:
        work.mkdir(parents=True)
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
        work.rename(beside)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    words = f"{left} songs were too many to copy: the page plays them from where they are."
    return sources, words if left else ""


def _copy_name(number: int, file: Path) -> str:
    """A name that every file system and address takes as it is."""
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", file.stem)[:60].strip("_")
    ending = re.sub(r"[^A-Za-z0-9.]+", "", file.suffix)
    return f"{number:05d}-{stem}{ending}" if stem else f"{number:05d}{ending}"
