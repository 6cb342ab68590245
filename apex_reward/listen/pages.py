"""What the pages share: links to each other, and the songs that a browser sends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException, UploadFile
from fastapi.responses import HTMLResponse

from apex_reward.errors import ApexError
from apex_reward.report.document import render

Tabs = Sequence[tuple[str, str]]
MOST_BYTES = 300_000_000
"""Of one song; an hour of 16-bit stereo is twice that."""


def page(name: str, tabs: Tabs, title: str, **values: Any) -> HTMLResponse:
    """The page `name` with links to the others; `tabs` are names and addresses."""
    values |= {"title": title, "subtitle": "", "tabs": tabs if len(tabs) > 1 else [], "here": name}
    return HTMLResponse(render(f"listen/templates/{name}.html", **values))


@contextmanager
def uploaded(*songs: UploadFile) -> Iterator[list[Path]]:
    """Files that hold the songs that a browser sent; they are deleted afterwards.

    An `ApexError` within the block becomes an answer 422 with its message.

    Raises:
        HTTPException: 413 for a song that is too large, or 422.
    """
    with tempfile.TemporaryDirectory(prefix="apex-reward-") as folder:
        paths = []
        for number, song in enumerate(songs):
            if (song.size or 0) > MOST_BYTES:
                raise HTTPException(413, f"a song may have {MOST_BYTES / 1e6:.0f} MB")
            paths.append(Path(folder) / f"{number}.audio")
            with paths[-1].open("wb") as file:
                while data := song.file.read(1 << 20):
                    file.write(data)
        try:
            yield paths
        except ApexError as error:
            raise HTTPException(422, str(error)) from error


def shown_name(song: UploadFile) -> str:
    """The name of a song that a browser sent, without folders."""
    return (song.filename or "song").replace("\\", "/").rpartition("/")[2]
