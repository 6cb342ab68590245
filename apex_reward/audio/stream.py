"""A file as a stream of samples: one decoder, read forward once to the end, and counted.

libsndfile decodes what it reads. FFmpeg (through PyAV, whose wheels bring its libraries) decodes
the rest: AAC, M4A, WMA, WebM, Matroska, MPEG-TS. FFmpeg also goes on where libsndfile fails, so a
file is called damaged only if both fail.

Shape key: C = channels, n = samples of a chunk.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile

from apex_reward.audio.containers import Plan, Reader, piece_reader, scan
from apex_reward.audio.samples import CHUNK, GAP_SECONDS, AudioStream, Samples, with_channels
from apex_reward.errors import AudioError

Chunks = Generator[Samples, None, None]
NO_LENGTH = 1 << 40
"""Samples from which a header's length is a mark for "unknown"."""
NO_BYTES = 0x7FFF_0000
"""Bytes from which a chunk's length is a mark for "to the end", as streaming writers leave it."""
LFS_MARK = b"version https://git-lfs"
_SIZES = re.compile(
    r"^\s*(?:RIFF|FORM|riff|Riff size|data|SSND|BODY|Data Size)\s*: (\d+) \(should be (\d+)\)", re.M
)


FAILURES = (RuntimeError, ValueError, MemoryError)
"""What libsndfile's binding raises for files that it cannot decode."""


@contextmanager
def stream_file(path: str | os.PathLike[str]) -> Iterator[AudioStream]:
    """A song, open inside the block.

    Raises:
        AudioError: no such file, not a regular file, not readable, empty or not audio. The message
            is the reason, without the path. The chunks raise it too.
    """
    descriptor = _open(Path(path))
    try:
        with stream_descriptor(descriptor) as stream:
            yield stream
    finally:
        os.close(descriptor)


@contextmanager
def stream_descriptor(descriptor: int) -> Iterator[AudioStream]:
    """As `stream_file` for an open regular file.

    The decoders read from the descriptor itself: through a Python file object libsndfile would
    swallow an interrupt and end the song there, and FFmpeg would take a name for an address.
    """
    try:
        head = os.pread(descriptor, 64, 0)
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror or error}") from error
    if not head:
        raise AudioError("is empty (0 bytes)")
    if head.startswith(LFS_MARK):
        raise AudioError("is a Git LFS pointer, not the audio itself; run `git lfs pull`")
    try:
        reader = Reader(descriptor)
    except FAILURES as error:
        failure = f"is not audio that can be decoded ({_why(error)}"
        opened = _ffmpeg_stream(descriptor, failure)
    else:
        opened = _libsndfile_stream(descriptor, reader)
    with opened as stream:
        yield stream


def _open(path: Path) -> int:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe or device would block for ever
            folder = stat.S_ISDIR(mode)
            raise AudioError("is a folder, not a file" if folder else "is not a regular file")
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        reason = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise AudioError(reason) from None
    except PermissionError as error:
        raise AudioError("permission denied") from error
    except AudioError:
        raise
    except (OSError, ValueError) as error:
        raise AudioError(f"cannot be opened: {error}") from error


@contextmanager
def _libsndfile_stream(descriptor: int, reader: Reader) -> Iterator[AudioStream]:
    with reader:
        plan = scan(reader.format, descriptor)
        stream = AudioStream(reader.samplerate, reader.channels, iter(()))
        stream.cut, stream.incomplete = plan.cut, plan.incomplete
        if plan.pieces:
            chunks = _of_pieces(descriptor, plan, stream)
        else:
            chunks = _of_file(descriptor, reader, stream)
        stream.chunks = chunks
        with closing(chunks):
            yield stream


def _of_file(descriptor: int, reader: Reader, stream: AudioStream) -> Chunks:
    """All chunks by libsndfile; where it fails, FFmpeg goes on behind what was decoded."""
    promised, done, failure = _promised(reader), 0, ""
    try:
        for chunk in _read(reader):
            done += len(chunk)
            yield chunk
    except FAILURES as error:
        seconds = f"is damaged at {done / stream.sample_rate:.1f} s"
        failure = f"{seconds if done else 'is not audio that can be decoded'} ({_why(error)}"
    stream.missing = max(0, promised - done)
    # libsndfile ends some Opus files early without an error.
    early = reader.format == "OGG" and stream.missing > GAP_SECONDS * stream.sample_rate
    if failure:
        yield from _go_on(descriptor, stream, done, failure)
    elif early and not stream.cut:
        with suppress(AudioError):  # then there is no more
            yield from _go_on(descriptor, stream, done, "ends early (libsndfile: no error")


def _go_on(descriptor: int, stream: AudioStream, done: int, failure: str) -> Chunks:
    """What FFmpeg decodes behind the first `done` samples; AudioError where that is nothing."""
    with _ffmpeg_stream(descriptor, failure) as other:
        if (other.sample_rate, other.channels) != (stream.sample_rate, stream.channels):
            raise AudioError(f"{failure}; FFmpeg: another rate or number of channels)")
        position = 0
        for chunk in other.chunks:
            new = chunk[max(0, done - position) :]
            position += len(chunk)
            if len(new):
                yield new
        if position <= done:
            raise AudioError(f"{failure}; FFmpeg: no sound behind it)")
        stream.missing, stream.cut = other.missing, other.cut
        stream.incomplete |= other.incomplete


def _ffmpeg_stream(descriptor: int, failure: str) -> AbstractContextManager[AudioStream]:
    from apex_reward.audio.ffmpeg import ffmpeg_stream  # few files need it

    return ffmpeg_stream(descriptor, failure)


def _of_pieces(descriptor: int, plan: Plan, stream: AudioStream) -> Chunks:
    stream.missing = plan.missing
    for piece in plan.pieces:
        done = 0
        try:
            with piece_reader(descriptor, piece) as reader:
                stream.incomplete |= reader.samplerate != stream.sample_rate
                for chunk in _read(reader) if reader.samplerate == stream.sample_rate else ():
                    done += len(chunk)
                    yield with_channels(chunk, stream.channels)
        except soundfile.LibsndfileError:  # the piece does not begin as audio, or is damaged
            stream.incomplete = True
        stream.incomplete |= piece.samples - done > GAP_SECONDS * stream.sample_rate


def _read(reader: Reader) -> Iterator[Samples]:
    """Chunks (n, C), all in one piece of memory.

    Samples of 16 bits are read as integers and scaled here, in a third of libsndfile's time.
    """
    memory = np.empty((CHUNK, reader.channels), np.float32)
    if reader.subtype == "PCM_16":
        integers = np.empty((CHUNK, reader.channels), np.int16)
        while len(read := reader.read(out=integers)):
            yield np.multiply(read, np.float32(2**-15), out=memory[: len(read)])
        return
    while len(chunk := reader.read(out=memory)):
        yield chunk


def _promised(reader: Reader) -> int:
    """Samples per channel as the file's header gives them; 0 where it does not.

    libsndfile lowers the length of an uncompressed file to what is there, and keeps the header's
    in its log.
    """
    frames = int(reader.frames)
    if frames >= NO_LENGTH:
        return 0
    for claimed, there in _SIZES.findall(reader.extra_info):
        if int(there) < int(claimed) < NO_BYTES:
            return frames * int(claimed) // max(1, int(there))
    return frames


def _why(error: Exception) -> str:
    if isinstance(error, soundfile.LibsndfileError):
        return f"libsndfile: {str(error.error_string).rstrip('.')}"
    return f"libsndfile: {type(error).__name__}: {error}"
