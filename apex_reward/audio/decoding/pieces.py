"""Parts of a file that are decoded one after another, each as a stream of its own.

libsndfile believes a header's length and stops there. Where a header is wrong or missing, or a file
holds several songs behind each other, a scan of the file (`mp3`, `ogg`, `riff`) finds the parts,
and each part reaches libsndfile through a pipe, which has no end that could be believed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import soundfile

COPY_BYTES = 1 << 18
WINDOW_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `stop` of a file behind `prefix`, of at least `samples` per channel."""

    start: int
    stop: int
    prefix: bytes = b""
    samples: int = 0


@dataclass(frozen=True)
class Plan:
    """What a scan of a file found.

    Attributes:
        pieces: to decode in order; none where libsndfile reads the file right by itself.
        missing: samples per channel that a header promises and the file does not hold.
        cut: the file ends inside a packet, with an unknown number of samples missing.
        incomplete: the file holds sound that cannot be heard with the rest (of another rate).
    """

    pieces: list[Piece] = field(default_factory=list)
    missing: int = 0
    cut: bool = False
    incomplete: bool = False


class Window:
    """Random reads of a file through a buffer that moves along; the file's position stays."""

    def __init__(self, descriptor: int) -> None:
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._start = 0
        self._bytes = b""

    def at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from `position`; fewer at the end of the file."""
        first = position - self._start
        if first < 0 or first + count > len(self._bytes):
            self._bytes = os.pread(self._descriptor, max(WINDOW_BYTES, count), position)
            self._start, first = position, 0
        return self._bytes[first : first + count]

    def find(self, mark: bytes, position: int) -> int:
        """Where `mark` begins at or after `position`; the size of the file where nowhere."""
        while position + len(mark) <= self.size:
            ahead = self.at(position, WINDOW_BYTES // 16)
            found = ahead.find(mark)
            if found >= 0:
                return position + found
            position += max(1, len(ahead) - len(mark) + 1)
        return self.size


class Reader(soundfile.SoundFile):
    """A sound file that is only read forwards, to its end.

    soundfile limits reads of a seekable file by the header's length, and seeks after each.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, closefd=False)

    def seekable(self) -> bool:
        """No: it is read from front to end."""
        return False


@contextmanager
def piece_reader(descriptor: int, piece: Piece) -> Iterator[Any]:
    """A `Reader` of one piece; raises soundfile.LibsndfileError where it is no audio."""
    reading, writing = os.pipe()
    thread = threading.Thread(
        target=_feed, args=(descriptor, piece, writing), name="decode-feed", daemon=True
    )
    thread.start()
    try:
        with Reader(reading) as reader:
            yield reader
    finally:
        os.close(reading)  # a feed that still writes ends with a broken pipe
        thread.join()


def _feed(descriptor: int, piece: Piece, writing: int) -> None:
    try:
        _write(writing, piece.prefix)
        position = piece.start
        while position < piece.stop:
            data = os.pread(descriptor, min(COPY_BYTES, piece.stop - position), position)
            if not data:
                break
            _write(writing, data)
            position += len(data)
    except OSError:
        pass  # the reader has had enough
    finally:
        os.close(writing)


def _write(writing: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(writing, view) :]
