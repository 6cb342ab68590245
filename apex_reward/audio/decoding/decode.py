"""One song on its way to the model: from a file, from bytes or from an array. No torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apex_reward.audio.decoding import ffmpeg
from apex_reward.audio.decoding.hearing import (
    BLOCK_SECONDS,
    Block,
    DecodeSettings,
    SongFacts,
    hear,
)
from apex_reward.audio.decoding.stream import (
    CHUNK,
    AudioStream,
    stream_descriptor,
    stream_file,
)
from apex_reward.errors import AudioError, UsageError

__all__ = [
    "BLOCK_SECONDS",
    "DecodeSettings",
    "DecodedSong",
    "SongFacts",
    "decode_song",
    "song_of",
    "song_of_bytes",
]

MAX_CHANNELS = 64
"""An array with more channels than this and than samples is (T, C)."""
PLAIN = DecodeSettings(segment_seconds=30.0, model_rate=24_000)
"""Thresholds of the flags for arrays and bytes where no model is named: APEX's."""

Blocks = Generator[Block, None, None]


class DecodedSong:
    """A song as the encoder hears it, before resampling, block by block.

    The first block is decoded at once. A song up to `BLOCK_SECONDS` is one block and stays in
    memory; a longer one is decoded as its blocks are read, and again when they are read again.

    Attributes:
        path: or another name of the song.
        sample_rate: of the file in Hz; 0 where there is an `error`.
        error: why the song cannot be scored, or None. Damage after the first block raises from
            `blocks` instead.
    """

    def __init__(self, path: str, start: Callable[[], Iterator[Block]]) -> None:
        self.path = path
        self.sample_rate = 0
        self.error: str | None = None
        self._start = start
        self._first: Block | None = None
        self._rest: Iterator[Block] = iter(())
        self._facts: SongFacts | None = None
        try:
            self._rest = start()
            self._first = next(self._rest)
            self.sample_rate = self._first.sample_rate
        except AudioError as error:
            self.error = str(error)
        if self._first is not None and self._first.facts is not None:
            self._facts = self._first.facts
            self.close()

    @classmethod
    def failed(cls, path: str, reason: str) -> DecodedSong:
        """A song that cannot be scored, with the reason."""

        def fail() -> Iterator[Block]:
            raise AudioError(reason)

        return cls(path, fail)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Mono blocks (n,) float32 of `BLOCK_SECONDS` at most, from the song's beginning.

        Raises:
            AudioError: the song has an `error`, or is damaged further on. What was read before is
                no song.
        """
        if self.error is not None:
            raise AudioError(self.error)
        if self._first is not None and self._first.facts is not None:
            yield self._first.samples
            return
        if self._first is None:  # read before: decode again
            self.close()
            self._rest = self._start()
            self._first = next(self._rest)
        first, self._first = self._first, None
        yield first.samples
        del first
        for block in self._rest:
            if block.facts is not None:
                self._facts = block.facts
            yield block.samples

    @property
    def facts(self) -> SongFacts:
        """What was heard; raises UsageError before the blocks are read."""
        if self._facts is None:
            raise UsageError(f"{self.path}: the facts of a song are known once its blocks are read")
        return self._facts

    @property
    def mono(self) -> NDArray[np.float32]:
        """All samples (T,); empty where there is an `error`. Not for songs of hours."""
        if self.error is not None:
            return np.zeros(0, np.float32)
        return np.concatenate(list(self.blocks()))

    @property
    def flags(self) -> list[str]:
        """As in `facts`; none where there is an `error`."""
        return [] if self.error is not None else self.facts.flags

    def close(self) -> None:
        """Stop decoding; the blocks can still be read again from the beginning."""
        if isinstance(self._rest, Generator):
            self._rest.close()
        self._rest = iter(())
        if self._facts is None or self._first is None or self._first.facts is None:
            self._first = None


def decode_song(path: str, settings: DecodeSettings) -> DecodedSong:
    """Decode a file in this process, whatever is in it."""
    return DecodedSong(path, lambda: decoded_blocks(path, settings))


def decoded_blocks(path: str, settings: DecodeSettings) -> Iterator[Block]:
    """The blocks of a file; every failure is an AudioError."""
    yield from _guarded(lambda: stream_file(path), settings)


def song_of(
    samples: NDArray[np.floating[Any]],
    sample_rate: int,
    name: str = "",
    settings: DecodeSettings = PLAIN,
) -> DecodedSong:
    """A song from samples (T,) or (C, T), floats in [-1, 1], with the checks of a file.

    Raises:
        UsageError: not a float array of one or two dimensions, more channels than samples, or a
            rate that is no positive number. What is wrong with the samples themselves (none, NaN,
            infinite) is the song's `error`.
    """
    array = np.asarray(samples)
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"samples are {array.dtype}; expected floats in [-1, 1] "
            "(divide integer samples by their full scale, 32768 for 16 bits)"
        )
    if array.ndim not in (1, 2):
        raise UsageError(f"samples have shape {array.shape}; expected (T,) or (C, T)")
    if array.ndim == 2 and array.shape[0] > max(1, array.shape[1]):
        raise UsageError(
            f"samples have shape {array.shape}, read as (C, T) with {array.shape[0]} channels of "
            f"{array.shape[1]} samples; did you pass (T, C)?"
        )
    if sample_rate <= 0 or sample_rate != int(sample_rate):
        raise UsageError(f"sample_rate is {sample_rate}; expected whole Hz above 0")
    song = np.atleast_2d(array).T
    return DecodedSong(
        name,
        lambda: _guarded(
            lambda: AudioStream(int(sample_rate), max(1, song.shape[1]), _chunks(song)), settings
        ),
    )


def song_of_bytes(data: bytes, name: str, settings: DecodeSettings = PLAIN) -> DecodedSong:
    """A song from the bytes of an audio file, with the checks of a file."""

    def stream() -> AudioStream:
        # libsndfile reads from a descriptor: through a Python object it would swallow interrupts.
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            descriptor = os.dup(file.fileno())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return stream_descriptor(descriptor, lambda: ffmpeg.chunks(data))

    return DecodedSong(name, lambda: _guarded(stream, settings))


def _chunks(song: NDArray[np.floating[Any]]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(song), CHUNK):
        yield np.ascontiguousarray(song[start : start + CHUNK], np.float32)


def _guarded(stream: Callable[[], AudioStream], settings: DecodeSettings) -> Iterator[Block]:
    try:
        yield from hear(stream(), settings)
    except AudioError:
        raise
    except Exception as error:
        # Whatever a decoder throws at a damaged file is that file's failure, not the run's.
        raise AudioError(f"cannot be decoded: {type(error).__name__}: {error}") from error
