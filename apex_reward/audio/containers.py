"""Parts of a file that libsndfile is told one after another, each as a stream of its own.

libsndfile believes a header's length and stops there. Where a header is wrong or missing, or a file
holds several songs behind each other, a scan of the file finds the parts, and each part reaches
libsndfile through a pipe, which has no end that could be believed.

An MP3 has no length. Encoders put one into a first frame without sound (`Xing`, `Info`); a file
that was piped, cut or recorded has none, and a joined file has that of its first part. Frame
headers: ISO/IEC 11172-3, 2.4.1.3 and 13818-3; the Xing frame as LAME writes it. Ogg by its pages:
RFC 3533.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import soundfile

COPY_BYTES = 1 << 18
WINDOW_BYTES = 1 << 20

# kbit/s by (MPEG version 1, layer); the lower rates of versions 2 and 2.5 share layers 2 and 3.
_BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SIDE_BYTES = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}
_LEAST_FRAMES = 3
"""Frames of a run that count as sound; fewer among other bytes are chance."""
_OGG_HEAD, _OGG_BEGINS = 27, 0x02
_TO_THE_END = b"\xff\xff\xff\xff"


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
        incomplete: the file holds sound that cannot be decoded with the rest (of another rate).
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
def piece_reader(descriptor: int, piece: Piece) -> Iterator[Reader]:
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
    with suppress(OSError), os.fdopen(writing, "wb") as pipe:  # the reader may have had enough
        pipe.write(piece.prefix)
        for position in range(piece.start, piece.stop, COPY_BYTES):
            pipe.write(os.pread(descriptor, min(COPY_BYTES, piece.stop - position), position))


def scan(kind: str, descriptor: int) -> Plan:
    """The parts of a file of a libsndfile format: of MP3, Ogg and WAV; no parts of others."""
    return _SCANS[kind](Window(descriptor)) if kind in _SCANS else Plan()


def riff_plan(window: Window) -> Plan:
    """One piece with an open length where a WAV's data chunk claims 0 bytes and there are more.

    Its writer never came back to fill in the length.
    """
    for name, start, size in _riff_chunks(window, 12):
        if name == b"data":
            if size or _only_chunks(window, start):
                break
            return Plan([Piece(start, window.size, window.at(0, start - 4) + _TO_THE_END)])
    return Plan()


def _only_chunks(window: Window, position: int) -> bool:
    """Whether other chunks or nothing follow, so that an empty data chunk is really empty."""
    for name, start, size in _riff_chunks(window, position):
        if not all(32 <= byte < 127 for byte in name):
            return False
        position = start + size + size % 2
    return position in (window.size, window.size + 1)


def _riff_chunks(window: Window, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and size of each chunk from `position` on."""
    while position + 8 <= window.size:
        head = window.at(position, 8)
        size = int.from_bytes(head[4:], "little")
        yield head[:4], position + 8, size
        position += 8 + size + size % 2


def ogg_plan(window: Window) -> Plan:
    """The streams of a chain (songs behind each other in one file)."""
    starts: list[int] = []
    position, beginning, cut = 0, False, False
    while position + _OGG_HEAD <= window.size:
        head = window.at(position, _OGG_HEAD)
        if head[:4] != b"OggS":
            position = window.find(b"OggS", position + 1)
            continue
        begins = bool(head[5] & _OGG_BEGINS)
        # Streams side by side (sound and pictures) begin together: one link of the chain.
        if begins and not beginning:
            starts.append(position)
        beginning = begins
        position += _OGG_HEAD + head[26] + sum(window.at(position + _OGG_HEAD, head[26]))
        cut = position > window.size
    if len(starts) < 2:
        return Plan(cut=cut)
    ends = [*starts[1:], window.size]
    return Plan([Piece(a, b) for a, b in zip(starts, ends, strict=True)], cut=cut)


class _Frame(NamedTuple):
    """A header: bytes and samples of its frame, what a decoder keeps, bytes before a Xing mark."""

    length: int
    samples: int
    kind: tuple[int, bool, int]  # rate, mono, layer: one decoder can go on while they stay
    mark: int


@dataclass
class _Run:
    """Frames behind each other without a gap; `promised` frames by a Xing frame at the start."""

    start: int
    stop: int
    frame: _Frame
    frames: int = 0
    promised: int | None = None

    def goes_on(self, position: int, frame: _Frame) -> bool:
        """Whether a frame there is the next of this run."""
        full = self.promised is not None and self.frames >= self.promised
        return position == self.stop and not full and frame.kind == self.frame.kind


def mp3_plan(window: Window) -> Plan:
    """The parts of an MPEG audio file (layers 1 to 3)."""
    runs = _runs(window)
    if not runs:
        return Plan()
    missing = _missing(runs)
    if len(runs) == 1 and runs[0].promised is not None:
        return Plan(missing=missing)
    kept = [run for run in runs if run.frame.kind[0] == runs[0].frame.kind[0]]
    pieces = [Piece(r.start, r.stop, samples=r.frames * r.frame.samples) for r in kept]
    return Plan(pieces, missing, incomplete=len(kept) < len(runs))


def _missing(runs: list[_Run]) -> int:
    """Promised samples that are not there; a run behind a gap goes on with its promise."""
    missing = left = samples = 0
    for run in runs:
        if run.promised is not None or left == 0:
            missing += left * samples
            left, samples = run.promised or 0, run.frame.samples
        left = max(0, left - run.frames)
    return missing + left * samples


def _runs(window: Window) -> list[_Run]:
    runs: list[_Run] = []
    position = 0
    while position + 4 <= window.size:
        frame = _frame(window.at(position, 4))
        goes_on = bool(runs) and frame is not None and runs[-1].goes_on(position, frame)
        if frame is None or not (
            _confirmed(window, position, frame) or (goes_on and _ends(window, position, frame))
        ):
            position = _past_other_bytes(window, position)
            continue
        stop = position + frame.length
        promised = _xing(window, position, frame)
        if promised is not None:
            # The frame itself holds no sound; without a count it is left out.
            start = position if promised else stop
            runs.append(_Run(start, stop, frame, promised=promised or None))
        else:
            if not goes_on:
                runs.append(_Run(position, position, frame))
            runs[-1].stop = stop
            runs[-1].frames += 1
        position = stop
    return [run for run in runs if run.frames >= _LEAST_FRAMES] or runs[:1]


def _ends(window: Window, position: int, frame: _Frame) -> bool:
    """Whether a frame in line, behind which none stands, is whole: the last one before a tag.

    One that was cut has the next file's beginning within its length.
    """
    stop = position + frame.length
    begin = window.find(b"\xff", position + 4)
    while begin < min(stop, window.size):
        other = _frame(window.at(begin, 4))
        if other is not None and _confirmed(window, begin, other):
            return False
        begin = window.find(b"\xff", begin + 1)
    return stop <= window.size


def _confirmed(window: Window, position: int, frame: _Frame) -> bool:
    """Whether a frame out of line is one: another follows, or the file ends right behind it."""
    stop = position + frame.length
    following = _frame(window.at(stop, 4))
    return stop == window.size if following is None else following.kind == frame.kind


def _past_other_bytes(window: Window, position: int) -> int:
    """Behind a tag, or at the next byte that could begin a frame or a tag."""
    if window.at(position, 3) == b"ID3":
        head = window.at(position, 10)
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        return position + 10 + size + (10 if len(head) > 5 and head[5] & 0x10 else 0)
    tag = window.find(b"ID3", position + 1) if position == 0 else window.size
    return min(tag, window.find(b"\xff", position + 1))


def _xing(window: Window, position: int, frame: _Frame) -> int | None:
    """Frames that a Xing frame promises, 0 where it gives no count; None where it is none."""
    head = window.at(position + 4 + frame.mark, 12)
    if frame.kind[2] != 3 or head[:4] not in (b"Xing", b"Info"):
        return None
    return int.from_bytes(head[8:12], "big") if len(head) == 12 and head[7] & 1 else 0


@lru_cache(maxsize=4096)
def _frame(head: bytes) -> _Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate_index == 3:
        return None
    first, mono = version == 3, head[3] >> 6 == 3
    rate = _RATES[version][rate_index]
    bitrate = _BITRATES[first, layer][bits - 1] * 1000
    samples = 384 if layer == 1 else 1152 if layer == 2 or first else 576
    unit = 4 if layer == 1 else 1  # bytes that padding adds
    length = (samples // 8 // unit * bitrate // rate + padding) * unit
    return _Frame(length, samples, (rate, mono, layer), _SIDE_BYTES[first, mono])


_SCANS = {"MP3": mp3_plan, "OGG": ogg_plan, "WAV": riff_plan, "WAVEX": riff_plan}
