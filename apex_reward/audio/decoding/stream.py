"""A file as a stream of samples: read to the end, whatever the header says, and counted.

Shape key: C = channels, n = samples of a chunk.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from apex_reward.audio.decoding import ffmpeg, mp3, ogg, riff
from apex_reward.audio.decoding.pieces import Piece, Plan, Reader, Window, piece_reader
from apex_reward.errors import AudioError

Samples = npt.NDArray[np.float32]
CHUNK = 1 << 17
"""Samples per channel of one read: an interrupt waits no longer, and no more is held twice."""
NO_LENGTH = 1 << 40
"""Samples from which a header's length is a mark for "unknown"."""
NO_BYTES = 0x7FFF_0000
"""Bytes from which a chunk's length is a mark for "to the end", as streaming writers leave it."""
SHORTFALL_SECONDS = 0.5
LFS_MARK = b"version https://git-lfs"
_SIZES = re.compile(
    r"^\s*(?:RIFF|FORM|riff|Riff size|data|SSND|BODY|Data Size)\s*: (\d+) \(should be (\d+)\)", re.M
)
_SCANS: dict[str, Callable[[Window], Plan]] = {
    "MP3": mp3.plan,
    "OGG": ogg.plan,
    "WAV": riff.plan,
    "WAVEX": riff.plan,
}


@dataclass
class AudioStream:
    """One file on its way.

    Attributes:
        sample_rate: in Hz.
        channels: C; a part of the file with another number is brought to it by its mean.
        chunks: the samples, (n, C) float32 each, n up to `CHUNK`; raises AudioError on damage.
        missing: once the chunks are read: samples that the header promised and that were not there.
        cut: the file ends inside a packet.
        incomplete: it holds sound that could not be heard (a part of another sample rate).
    """

    sample_rate: int
    channels: int
    chunks: Iterator[Samples]
    missing: int = 0
    cut: bool = False
    incomplete: bool = False
    resources: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """End the decoding and close the file, also in the middle."""
        if isinstance(self.chunks, Generator):
            self.chunks.close()
        self.resources.close()


def stream_file(path: str | os.PathLike[str]) -> AudioStream:
    """Open a song; the caller closes the stream.

    Raises:
        AudioError: no such file, not a regular file, not readable, empty or not audio. The message
            is the reason, without the path. The chunks raise it too.
    """
    descriptor = _open(Path(path))
    return stream_descriptor(descriptor, lambda: ffmpeg.chunks(os.fspath(path)))


def stream_descriptor(descriptor: int, other: Callable[[], ffmpeg.Decoded | None]) -> AudioStream:
    """As `stream_file` for an open file, which the stream closes.

    libsndfile reads from the descriptor itself: through a Python file object it would swallow
    an interrupt and end the song there.

    Args:
        descriptor: of a regular file, at its beginning.
        other: decodes what libsndfile does not read; None where it cannot either.
    """
    with ExitStack() as resources:
        resources.callback(os.close, descriptor)
        try:
            head = os.pread(descriptor, 64, 0)
        except OSError as error:
            raise AudioError(f"cannot be read: {error.strerror or error}") from error
        if not head:
            raise AudioError("is empty (0 bytes)")
        if head.startswith(LFS_MARK):
            raise AudioError("is a Git LFS pointer, not the audio itself; run `git lfs pull`")
        try:
            reader = resources.enter_context(Reader(descriptor))
        except (RuntimeError, ValueError, MemoryError) as error:
            return _decode_otherwise(head, error, other)
        stream = _begin(descriptor, reader)
        stream.resources = resources.pop_all()
        return stream
    raise AssertionError  # an ExitStack of closings swallows nothing


def _open(path: Path) -> int:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError("is a folder, not a file")
        # A pipe or device would block for ever.
        if not stat.S_ISREG(mode):
            raise AudioError("is not a regular file")
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        reason = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise AudioError(reason) from None
    except PermissionError as error:
        raise AudioError("permission denied") from error
    except AudioError:
        raise
    except (OSError, ValueError) as error:
        raise AudioError(f"cannot be opened: {error}") from error


def _decode_otherwise(
    head: bytes, error: Exception, other: Callable[[], ffmpeg.Decoded | None]
) -> AudioStream:
    decoded = other()
    if decoded is not None:
        return AudioStream(decoded.sample_rate, decoded.channels, decoded.chunks)
    name = ffmpeg.format_name(head)
    if name is not None:
        raise AudioError(
            f"is {name}, which needs FFmpeg: pip install 'apex-reward[torchcodec]'"
        ) from error
    raise AudioError(f"is not audio that can be decoded ({_reason(error)})") from error


def _begin(descriptor: int, reader: Any) -> AudioStream:
    scan = _SCANS.get(reader.format)
    plan = scan(Window(descriptor)) if scan else Plan()
    stream = AudioStream(
        int(reader.samplerate),
        int(reader.channels),
        iter(()),
        cut=plan.cut,
        incomplete=plan.incomplete,
    )
    if plan.pieces:
        stream.missing = plan.missing
        stream.chunks = _of_pieces(descriptor, plan.pieces, stream)
    else:
        stream.chunks = _of_file(reader, stream)
    return stream


def _of_file(reader: Any, stream: AudioStream) -> Iterator[Samples]:
    promised, heard = _promised(reader), 0
    for chunk in _read(reader):
        heard += len(chunk)
        yield chunk
    stream.missing = max(0, promised - heard)


def _of_pieces(descriptor: int, pieces: list[Piece], stream: AudioStream) -> Iterator[Samples]:
    for piece in pieces:
        heard = 0
        try:
            with piece_reader(descriptor, piece) as reader:
                if reader.samplerate != stream.sample_rate:
                    stream.incomplete = True
                    continue
                for chunk in _read(reader):
                    heard += len(chunk)
                    yield _with_channels(chunk, stream.channels)
        except soundfile.LibsndfileError:  # the piece does not begin as audio
            stream.incomplete = True
        stream.incomplete |= piece.samples - heard > SHORTFALL_SECONDS * stream.sample_rate


def _read(reader: Any) -> Iterator[Samples]:
    heard = 0
    while True:
        try:
            chunk = reader.read(out=np.empty((CHUNK, reader.channels), np.float32))
        except (RuntimeError, ValueError, MemoryError) as error:
            if heard == 0:
                raise AudioError(f"is not audio that can be decoded ({_reason(error)})") from error
            seconds = heard / reader.samplerate
            raise AudioError(f"is damaged at {seconds:.1f} s ({_reason(error)})") from error
        if not len(chunk):
            return
        heard += len(chunk)
        yield chunk


def _promised(reader: Any) -> int:
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


def _with_channels(chunk: Samples, channels: int) -> Samples:
    if chunk.shape[1] == channels:
        return chunk
    return np.repeat(chunk.mean(axis=1, keepdims=True, dtype=np.float32), channels, axis=1)


def _reason(error: Exception) -> str:
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string).rstrip(".")
    return f"{type(error).__name__}: {error}"
