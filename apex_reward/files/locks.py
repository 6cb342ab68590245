"""One writer for a file: a second run is refused with who holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apex_reward.errors import UsageError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold `path.lock` for as long as the block runs; the system frees it when a process dies.

    Raises:
        UsageError: another process holds it (named), or it cannot be made.
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
    import fcntl

    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UsageError(
                f"{path} is being written by another run (process {holder}); wait for it, or name "
                "another output"
            ) from None
        # A holder takes its file away when it is done: what was opened before is no lock.
        if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
            return descriptor
        os.close(descriptor)
