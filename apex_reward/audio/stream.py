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
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from apex_reward.audio.containers import Piece, Plan, Reader, piece_reader, scan
from apex_reward.errors import AudioError

try:
    import av
    from av.audio.plane import AudioPlane
except ImportError:  # a machine that PyAV has no wheel for
    av = None  # type: ignore[assignment]

Samples = npt.NDArray[np.float32]
CHUNK = 1 << 15
"""Samples per channel of one read: they stay in cache while they are mixed and measured."""
NO_LENGTH = 1 << 40
"""Samples from which a header's length is a mark for "unknown"."""
NO_BYTES = 0x7FFF_0000
"""Bytes from which a chunk's length is a mark for "to the end", as streaming writers leave it."""
GAP_SECONDS = 0.5
"""Sound that is missing for longer is worth a flag."""
LFS_MARK = b"version https://git-lfs"
NO_FFMPEG = "FFmpeg: not installed; run `pip install av`"
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,"
    "wav,wv"
)
"""FFmpeg's names of the containers that are read. Playlists, which name other files, are not."""
STATED = ("mov", "matroska", "asf", "caf")
"""Containers whose header has the length of the sound; elsewhere FFmpeg guesses it."""
TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
"""FFmpeg's formats of samples and what they are in memory."""
_SIZES = re.compile(
    r"^\s*(?:RIFF|FORM|riff|Riff size|data|SSND|BODY|Data Size)\s*: (\d+) \(should be (\d+)\)", re.M
)


@dataclass
class AudioStream:
    """One file on its way.

    Attributes:
        sample_rate: in Hz.
        channels: C; a part of the file with another number is brought to it by its mean.
        chunks: the samples, (n, C) float32 each, n up to `CHUNK`; the next chunk may overwrite the
            memory of the one before. Raises AudioError on damage.
        missing: once the chunks are read: samples that the header promised and that were not there.
        cut: the file ends inside a packet.
        incomplete: it holds sound that could not be decoded (a broken packet, a gap, a part of
            another sample rate).
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
    return stream_descriptor(_open(Path(path)))


def stream_descriptor(descriptor: int) -> AudioStream:
    """As `stream_file` for an open regular file, which the stream closes.

    The decoders read from the descriptor itself: through a Python file object libsndfile would
    swallow an interrupt and end the song there, and FFmpeg would take a name for an address.
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
            stream = _ffmpeg_stream(descriptor, f"is not audio that can be decoded ({_why(error)}")
        else:
            plan = scan(reader.format, descriptor)
            stream = AudioStream(int(reader.samplerate), int(reader.channels), iter(()))
            stream.cut, stream.incomplete = plan.cut, plan.incomplete
            if plan.pieces:
                stream.chunks = _of_pieces(descriptor, plan, stream)
            else:
                stream.chunks = _of_file(descriptor, reader, stream)
        resources.callback(stream.resources.pop_all().close)
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


def _of_file(descriptor: int, reader: Any, stream: AudioStream) -> Iterator[Samples]:
    """All chunks by libsndfile; where it fails, FFmpeg goes on behind what was decoded."""
    promised, done, failure = _promised(reader), 0, ""
    try:
        for chunk in _read(reader):
            done += len(chunk)
            yield chunk
    except (RuntimeError, ValueError, MemoryError) as error:
        seconds = f"is damaged at {done / stream.sample_rate:.1f} s"
        failure = f"{seconds if done else 'is not audio that can be decoded'} ({_why(error)}"
    stream.missing = max(0, promised - done)
    # libsndfile ends some Opus files early without an error.
    early = reader.format == "OGG" and stream.missing > GAP_SECONDS * stream.sample_rate
    if failure or (early and not stream.cut):
        yield from _go_on(descriptor, stream, done, failure)


def _go_on(descriptor: int, stream: AudioStream, done: int, failure: str) -> Iterator[Samples]:
    """What FFmpeg decodes behind the first `done` samples; without a failure there may be none."""
    try:
        other = _ffmpeg_stream(descriptor, failure)
    except AudioError:
        if failure:
            raise
        return
    stream.resources.callback(other.close)
    if (other.sample_rate, other.channels) != (stream.sample_rate, stream.channels):
        if failure:
            raise AudioError(f"{failure}; FFmpeg: another rate or number of channels)")
        return
    position = 0
    for chunk in other.chunks:
        new = chunk[max(0, done - position) :]
        position += len(chunk)
        if len(new):
            yield new
    if position > done:
        stream.missing, stream.cut = other.missing, other.cut
        stream.incomplete |= other.incomplete
    elif failure:
        raise AudioError(f"{failure}; FFmpeg: no sound behind it)")


def _of_pieces(descriptor: int, plan: Plan, stream: AudioStream) -> Iterator[Samples]:
    stream.missing = plan.missing
    for piece in plan.pieces:
        done = 0
        try:
            for chunk in _of_piece(descriptor, piece, stream):
                done += len(chunk)
                yield chunk
        except soundfile.LibsndfileError:  # the piece does not begin as audio, or is damaged
            stream.incomplete = True
        stream.incomplete |= piece.samples - done > GAP_SECONDS * stream.sample_rate


def _of_piece(descriptor: int, piece: Piece, stream: AudioStream) -> Iterator[Samples]:
    with piece_reader(descriptor, piece) as reader:
        if reader.samplerate != stream.sample_rate:
            stream.incomplete = True
            return
        for chunk in _read(reader):
            yield _with_channels(chunk, stream.channels)


def _read(reader: Any) -> Iterator[Samples]:
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


def _ffmpeg_stream(descriptor: int, failure: str) -> AudioStream:
    """All sound of a file by FFmpeg.

    Args:
        descriptor: of the file.
        failure: what libsndfile made of it, the beginning of a message with an open bracket.

    Raises:
        AudioError: FFmpeg is not installed, or it does not decode the file either.
    """
    if av is None:
        raise AudioError(f"{failure}; {NO_FFMPEG})")
    os.lseek(descriptor, 0, os.SEEK_SET)
    options = {"fd": str(descriptor), "protocol_whitelist": "fd", "format_whitelist": FORMATS}
    with ExitStack() as resources:
        try:
            container = resources.enter_context(av.open("fd:", options=options))
            frames = _FFmpegFrames(container)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"{failure}; FFmpeg: {_why_ffmpeg(error)})") from error
        stream = AudioStream(frames.sample_rate, frames.channels, iter(()))
        stream.chunks = frames.chunks(stream, failure)
        stream.resources = resources.pop_all()
        return stream
    raise AssertionError


class _FFmpegFrames:
    """The decoded frames of a container's best audio track, in the order of presentation.

    Raises:
        ValueError: no audio track, or no packet of it can be decoded.
    """

    def __init__(self, container: Any) -> None:
        track = container.streams.best("audio")
        if track is None:
            raise ValueError("no audio track")
        track.codec_context.thread_count = 1
        self.good = self.bad = 0
        self.ends_badly = False
        self._stated = _stated_seconds(container, track)
        self._frames = self._decoded(container, track)
        self._first = next(self._frames, None)
        if self._first is None:
            raise ValueError("no packet can be decoded")
        # The track's own figures are those of the core of AAC with spectral band replication.
        self.sample_rate = int(self._first.sample_rate)
        self.channels = int(self._first.layout.nb_channels)

    def _decoded(self, container: Any, track: Any) -> Iterator[Any]:
        try:
            for packet in container.demux(track):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self.bad, self.ends_badly = self.bad + 1, True
                    continue
                for frame in frames:
                    self.good, self.ends_badly = self.good + 1, False
                    yield frame
        except av.FFmpegError:  # the container ends here
            self.ends_badly = True

    def chunks(self, stream: AudioStream, failure: str) -> Iterator[Samples]:
        """Frames joined to chunks (n, C); what is missing is written to the stream."""
        parts: list[Samples] = []
        done = held = 0
        for samples in self._samples(stream):
            parts.append(samples)
            held += samples.shape[1]
            if held >= CHUNK:
                yield from _split(parts)
                done, held, parts = done + held, 0, []
        if self.bad > self.good:
            raise AudioError(f"{failure}; FFmpeg: most packets are broken)")
        if parts:
            yield from _split(parts)
        stream.missing = max(0, round(self._stated * self.sample_rate) - done - held)
        stream.cut = self.ends_badly
        stream.incomplete |= self.bad > self.ends_badly

    def _samples(self, stream: AudioStream) -> Iterator[Samples]:
        end = None
        frame, self._first = self._first, None
        while frame is not None:
            if frame.time is not None and end is not None:
                stream.incomplete |= frame.time - end > GAP_SECONDS
            if frame.sample_rate != self.sample_rate:
                stream.incomplete = True
            else:
                yield _with_channels(_as_floats(frame).T, self.channels).T
            end = None if frame.time is None else frame.time + frame.samples / frame.sample_rate
            frame = next(self._frames, None)


def _stated_seconds(container: Any, track: Any) -> float:
    """Seconds of sound as the header gives them; 0 where it does not, or only for pictures too."""
    if not container.format.name.startswith(STATED):
        return 0.0
    if track.duration is not None:
        return float(track.duration * track.time_base)
    alone = len(container.streams) == 1 and container.duration is not None
    return container.duration / av.time_base if alone else 0.0


def _as_floats(frame: Any) -> Samples:
    """Samples (C, n) of a frame; integers are divided by their full scale."""
    channels, count = frame.layout.nb_channels, frame.samples
    kind = frame.format.name.rstrip("p")
    if frame.format.is_planar:
        # Not `frame.planes` or `to_ndarray`: they are wrong for some surround layouts.
        planes: list[Any] = [AudioPlane(frame, number) for number in range(channels)]
        array = np.stack([np.frombuffer(plane, TYPES[kind], count) for plane in planes])
    else:
        plane: Any = AudioPlane(frame, 0)
        array = np.frombuffer(plane, TYPES[kind], count * channels).reshape(-1, channels).T
    if kind in ("flt", "dbl"):
        return array.astype(np.float32, copy=False)
    scale = np.float32(1 << (8 * array.dtype.itemsize - 1))
    return array.astype(np.float32) / scale - np.float32(kind == "u8")


def _split(parts: list[Samples]) -> Iterator[Samples]:
    joined = np.concatenate(parts, axis=1)
    for start in range(0, joined.shape[1], CHUNK):
        yield joined[:, start : start + CHUNK].T


def _with_channels(chunk: Samples, channels: int) -> Samples:
    if chunk.shape[1] == channels:
        return chunk
    return np.repeat(chunk.mean(axis=1, keepdims=True, dtype=np.float32), channels, axis=1)


def _why(error: Exception) -> str:
    if isinstance(error, soundfile.LibsndfileError):
        return f"libsndfile: {str(error.error_string).rstrip('.')}"
    return f"libsndfile: {type(error).__name__}: {error}"


def _why_ffmpeg(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
