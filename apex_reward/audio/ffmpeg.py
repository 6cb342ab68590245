"""FFmpeg, through PyAV: what libsndfile does not decode. Only files that need it pay its import."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from apex_reward.audio.samples import CHUNK, GAP_SECONDS, AudioStream, Samples, with_channels
from apex_reward.errors import AudioError

try:
    import av
    from av.audio.plane import AudioPlane
except ImportError:  # a machine that PyAV has no wheel for
    av = None  # type: ignore[assignment]

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


@contextmanager
def ffmpeg_stream(descriptor: int, failure: str) -> Iterator[AudioStream]:
    """All sound of a file's best audio track by FFmpeg.

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
    try:
        container = av.open("fd:", options=options)
    except (av.FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise AudioError(f"{failure}; FFmpeg: {why})") from error
    with container:
        track = container.streams.best("audio")
        if track is None:
            raise AudioError(f"{failure}; FFmpeg: no audio track)")
        stated = _stated_seconds(container, track)
        track.codec_context.thread_count = 1
        stream = AudioStream(0, 0, iter(()))
        frames = _frames(container, track, stream, failure)
        first = next(frames, None)
        if first is None:
            raise AudioError(f"{failure}; FFmpeg: no packet can be decoded)")
        # The track's own figures are those of the core of AAC with spectral band replication.
        stream.sample_rate, stream.channels = first.sample_rate, first.layout.nb_channels
        stream.chunks = _chunks(chain([first], frames), stream, stated)
        yield stream


def _frames(container: Any, track: Any, stream: AudioStream, failure: str) -> Iterator[Any]:
    """The decoded frames of a track in the order of presentation; damage is noted in the stream."""
    good = bad = 0
    try:
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                bad, stream.cut = bad + 1, True
                continue
            for frame in frames:
                good, stream.cut = good + 1, False
                yield frame
    except av.FFmpegError:  # the container ends here
        stream.cut = True
    if bad > good:
        raise AudioError(f"{failure}; FFmpeg: most packets are broken)")
    stream.incomplete |= bad > stream.cut


def _chunks(frames: Iterable[Any], stream: AudioStream, stated: float) -> Iterator[Samples]:
    """Frames joined to chunks (n, C); gaps and what is missing are noted in the stream."""
    parts: list[Samples] = []
    done = held = 0
    end = None
    for frame in frames:
        if frame.time is not None and end is not None:
            stream.incomplete |= frame.time - end > GAP_SECONDS
        end = None if frame.time is None else frame.time + frame.samples / frame.sample_rate
        if frame.sample_rate != stream.sample_rate:
            stream.incomplete = True
            continue
        parts.append(with_channels(_as_floats(frame), stream.channels))
        held += frame.samples
        if held >= CHUNK:
            yield from _split(parts)
            done, held, parts = done + held, 0, []
    if parts:
        yield from _split(parts)
    stream.missing = max(0, round(stated * stream.sample_rate) - done - held)


def _stated_seconds(container: Any, track: Any) -> float:
    """Seconds of sound as the header gives them; 0 where it does not, or only for pictures too."""
    if not container.format.name.startswith(STATED):
        return 0.0
    if track.duration is not None:
        return float(track.duration * track.time_base)
    alone = len(container.streams) == 1 and container.duration is not None
    return container.duration / av.time_base if alone else 0.0


def _as_floats(frame: Any) -> Samples:
    """Samples (n, C) of a frame; integers are divided by their full scale."""
    channels, count = frame.layout.nb_channels, frame.samples
    kind, planar = frame.format.name.rstrip("p"), frame.format.is_planar
    # Not `frame.planes` or `to_ndarray`: they are wrong for some surround layouts.
    planes: list[Any] = [AudioPlane(frame, number) for number in range(channels if planar else 1)]
    values = count if planar else count * channels
    array = np.stack([np.frombuffer(plane, TYPES[kind], values) for plane in planes])
    array = array.T if planar else array.reshape(count, channels)
    if kind in ("flt", "dbl"):
        return array.astype(np.float32, copy=False)
    scale = np.float32(1 << (8 * array.dtype.itemsize - 1))
    return array.astype(np.float32) / scale - np.float32(kind == "u8")


def _split(parts: list[Samples]) -> Iterator[Samples]:
    joined = np.concatenate(parts)
    for start in range(0, len(joined), CHUNK):
        yield joined[start : start + CHUNK]
