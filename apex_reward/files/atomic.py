"""Files and folders that appear whole, and one writer for each of them."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apex_reward.errors import UsageError


@contextmanager
def atomic(path: str | Path, last: str | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The block makes a file or a folder there; nothing is there before. A folder replaces the old
    folder whole. A kill between the two renames of a folder leaves the old one as `.NAME.old`.
    Temporary folders that killed runs left beside it are removed.

    Args:
        last: move the files of the temporary folder into `path` one by one instead, the file of
            this name at the end; other files of `path` stay. Who reads `last` finds the others.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}-{threading.get_ident()}"
    temporary = target.with_name(f".{target.name}.{own}.tmp")
    try:
        yield temporary
        if last is not None:
            target.mkdir(exist_ok=True)
            for file in sorted(temporary.iterdir(), key=lambda file: (file.name == last, file)):
                file.replace(target / file.name)
        elif temporary.is_dir():
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if target.is_dir():
                target.rename(old)
            temporary.rename(target)
            for left in (old, *target.parent.glob(f".{glob.escape(target.name)}.*.tmp")):
                shutil.rmtree(left, ignore_errors=True)
        else:
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold `path.lock` while the block runs; the system frees it when a process dies.

    Raises:
        UsageError: another process holds it (its number is named), or the lock cannot be made.
    """
    lock = path.with_name(path.name + ".lock")
    descriptor = _locked(lock, path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path, path: Path) -> int:
    """A descriptor of the lock's file that this process holds."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A holder removes its file at the end: a descriptor of a removed file locks nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UsageError(
                f"{path} is being written by another run (process {holder}); wait for it, or name "
                "another output"
            ) from None
        os.close(descriptor)
