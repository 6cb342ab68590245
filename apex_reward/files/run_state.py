"""Folders that appear whole: what a kill interrupts is the old folder, or the new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends without an error.

    A kill in the middle of the exchange leaves the old one as `.<name>.old` and no `<name>`.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if folder.is_dir():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_files(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` one by one, the file `last` at the end.

    Other files of `folder` stay. What is read by the name `last` thus finds its companions.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: (file.name == last, file.name)):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
