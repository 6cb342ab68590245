"""Songs of files, bytes and arrays as streams of blocks, decoded ahead of the model. No torch."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apex_reward.audio.blocks import BLOCK_SECONDS, Block, Blocks, blocks_of
from apex_reward.audio.flags import DecodeSettings, Samples, SongFacts
from apex_reward.audio.samples import CHUNK, AudioStream
from apex_reward.audio.stream import stream_descriptor, stream_file
from apex_reward.audio.workers import DecodeProcess
from apex_reward.errors import AudioError, UsageError, expect

__all__ = [
    "BLOCK_SECONDS",
    "PLAIN",
    "DecodeSettings",
    "DecodedSong",
    "SongFacts",
    "SoundFacts",
    "decode_song",
    "decode_songs",
    "song_of",
    "song_of_bytes",
    "sound_facts",
]

PLAIN = DecodeSettings(segment_seconds=30.0, model_rate=24_000)
"""Thresholds of the flags for arrays and bytes where no model is named: APEX's."""
# Songs waiting per worker, the first block of each decoded: enough that none is idle while the
# encoder works.
AHEAD = 2


class DecodedSong:
    """A song as the encoder takes it, before resampling, block by block.

    The first block is decoded at once. A song up to `BLOCK_SECONDS` is one block and stays in
    memory; a longer one is decoded as its blocks are read, and again when they are read again.

    Args:
        path: or another name of the song.
        start: begins to decode; called once more for every further reading.

    Attributes:
        path: or another name of the song.
        sample_rate: of the file in Hz; 0 where there is an `error`.
        error: why the song cannot be scored, or None. Damage after the first block raises from
            `blocks` instead.
    """

    def __init__(self, path: str, start: Callable[[], Blocks]) -> None:
        self.path, self._start = path, start
        self.sample_rate = 0
        self.error: str | None = None
        self._first: Block | None = None
        self._rest: Blocks | None = None
        self._facts: SongFacts | None = None
        try:
            first = self._begin()
            self.sample_rate, self._facts = first.sample_rate, first.facts
        except AudioError as error:
            self.error = str(error)
        if self.in_memory:
            self.close()

    @classmethod
    def failed(cls, path: str, reason: str) -> DecodedSong:
        """A song that cannot be scored, with the reason."""

        def fail() -> Blocks:
            raise AudioError(reason)

        return cls(path, fail)

    def _begin(self) -> Block:
        self._rest = self._start()
        self._first = next(self._rest)
        return self._first

    @property
    def in_memory(self) -> bool:
        """Whether nothing of it is left to decode."""
        return self.error is not None or (self._first is not None and self._first.facts is not None)

    def blocks(self) -> Iterator[Samples]:
        """Mono blocks (n,) float32 of `BLOCK_SECONDS` at most, from the song's beginning.

        Raises:
            AudioError: the song has an `error`, or is damaged further on. What was read before is
                no song.
        """
        for block in self.channel_blocks():
            yield block[0] if len(block) == 1 else block.mean(axis=0)

    def channel_blocks(self) -> Iterator[Samples]:
        """As `blocks`, each (C, n): the channels where `DecodeSettings.channels` keeps them."""
        if self.error is not None:
            raise AudioError(self.error)
        if self._first is None:  # read before: decode again
            self.close()
            self._begin()
        first = self._first
        if not self.in_memory:
            self._first = None
        yield _channels(first)
        del first
        for block in self._rest or ():
            if block.facts is not None:
                self._facts = block.facts
            yield _channels(block)

    @property
    def facts(self) -> SongFacts:
        """What is known of the song; raises UsageError before the blocks are read."""
        if self._facts is None:
            raise UsageError(f"{self.path}: the facts of a song are known once its blocks are read")
        return self._facts

    @property
    def mono(self) -> Samples:
        """All samples (T,); empty where there is an `error`. Not for songs of hours."""
        if self.error is not None:
            return np.zeros(0, np.float32)
        return np.concatenate(list(self.blocks()))

    def close(self) -> None:
        """Stop decoding; the blocks can still be read again from the beginning."""
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.close()
        if not self.in_memory:
            self._first = None


def _channels(block: Block | None) -> Samples:
    """The samples (C, n) of a block; C is 1 for the mono mix."""
    assert block is not None
    return block.samples.reshape(-1, block.channels).T


def decode_song(path: str, settings: DecodeSettings) -> DecodedSong:
    """Decode a file in this process, whatever is in it."""
    return DecodedSong(path, lambda: blocks_of(partial(stream_file, path), settings))


def song_of(
    samples: NDArray[np.floating[Any]],
    sample_rate: int,
    name: str = "",
    settings: DecodeSettings = PLAIN,
) -> DecodedSong:
    """A song from samples (T,) or (C, T), floats in [-1, 1], with the checks and flags of a file.

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
    whole = sample_rate > 0 and sample_rate == int(sample_rate)
    expect(whole, "sample_rate", sample_rate, "whole Hz above 0")
    song = np.atleast_2d(array).T
    starts = range(0, len(song), CHUNK)

    def stream() -> AbstractContextManager[AudioStream]:
        chunks = (np.ascontiguousarray(song[n : n + CHUNK], np.float32) for n in starts)
        return nullcontext(AudioStream(int(sample_rate), max(1, song.shape[1]), chunks))

    return DecodedSong(name, lambda: blocks_of(stream, settings))


def song_of_bytes(data: bytes, name: str, settings: DecodeSettings = PLAIN) -> DecodedSong:
    """A song from the bytes of an audio file, with the checks and flags of a file."""

    @contextmanager
    def stream() -> Iterator[AudioStream]:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            with stream_descriptor(file.fileno()) as opened:
                yield opened

    return DecodedSong(name, lambda: blocks_of(stream, settings))


def decode_songs(
    paths: Sequence[str], settings: DecodeSettings, workers: int = 0
) -> Iterator[DecodedSong]:
    """Yield one DecodedSong per path, in the order of `paths`, for any number of workers.

    A song of several blocks keeps the worker that decoded its first block until its blocks are read
    or it is closed; another worker takes that one's place. Read again, it is decoded in this
    process.

    Args:
        paths: files to decode.
        settings: segment length and sample rate of the model.
        workers: processes that decode; 0 decodes in this one. The first blocks of at most `AHEAD`
            songs per worker wait in memory.
    """
    workers = min(workers, len(paths))
    if workers == 0:
        yield from (decode_song(path, settings) for path in paths)
        return
    idle = [DecodeProcess(settings) for _ in range(workers)]
    running = set(idle)

    def decode(path: str) -> DecodedSong:
        process, kept = idle.pop(), False

        def first() -> Blocks:
            try:
                yield from process.blocks(path)
            finally:
                if kept:
                    process.close()

        passes = iter([first()])
        here = partial(blocks_of, partial(stream_file, path), settings)
        song = DecodedSong(path, lambda: next(passes, None) or here())
        kept = not song.in_memory
        following = DecodeProcess(settings) if kept else process
        if kept:  # it ends with the song, not with the others
            running.discard(process)
            running.add(following)
        idle.append(following)
        return song

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        waiting: deque[Future[DecodedSong]] = deque()
        try:
            for path in paths:
                waiting.append(threads.submit(decode, path))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for process in tuple(running):
                process.close()


class SoundFacts(NamedTuple):
    """A file's facts, with its digest; or why it cannot be decoded."""

    path: str
    facts: SongFacts | None = None
    error: str | None = None


def sound_facts(paths: Sequence[str], workers: int = 0) -> Iterator[SoundFacts]:
    """One SoundFacts per path, in their order; a file that brings a worker down is a failed one.

    Args:
        paths: files to decode.
        workers: processes that decode; 0 decodes in this one.
    """
    for song in decode_songs(paths, replace(PLAIN, digest=True), workers):
        try:
            for _ in song.blocks():
                pass
        except AudioError as error:
            yield SoundFacts(song.path, error=str(error))
        else:
            yield SoundFacts(song.path, song.facts)
