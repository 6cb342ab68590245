"""A stream of samples as mono blocks for the encoder, and the facts once it has ended.

The samples are mixed, measured and identified in one pass, straight into the memory that the reader
takes them from: an array here, shared memory in a worker.

Shape key: C = channels, n = samples of a piece or block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np

from apex_reward.audio.flags import DecodeSettings, FlagMeter, Samples, SongFacts
from apex_reward.audio.samples import CHUNK, AudioStream
from apex_reward.errors import AudioError

BLOCK_SECONDS = 300.0
"""Longest block, the first: a song up to this length is one block."""
NEXT_SECONDS = 30.0
"""Of the blocks behind it: what reads ahead of a long song then holds little more than a short one.
"""
MIN_RATE, MAX_RATE = 2_000, 1_000_000
"""Hz. Sound of a lower rate, resampled, grows without bound; a higher one is a broken header."""
SLOT = 8 * CHUNK
"""Samples of a piece: a worker hands over some seconds at a time."""
MOST_CHANNELS = 6
"""A song of more channels is always mixed to mono."""


@dataclass(frozen=True)
class Block:
    """Samples float32 at a rate in Hz; the last block of a song has its facts.

    `samples` is the mono mix (n,), or C kept channels in turn (n * C,) where `channels` is C.
    """

    samples: Samples
    sample_rate: int
    facts: SongFacts | None = None
    channels: int = 1


Blocks = Generator[Block, None, None]
OpenStream = Callable[[], AbstractContextManager[AudioStream]]


def mono_pieces(open_stream: OpenStream, settings: DecodeSettings, slot: Samples) -> Blocks:
    """The mono mix in pieces; each is in `slot` (`SLOT`,), until the next one is asked for.

    With `settings.channels` the channels of a song of 2 to `MOST_CHANNELS` are kept.

    Raises:
        AudioError: a rate out of range, damage, NaN or infinite samples, no samples, or what
            else a decoder raises: that is the file's failure, not the run's.
    """
    try:
        with open_stream() as stream:
            yield from _pieces(stream, settings, slot)
    except AudioError:
        raise
    except Exception as error:
        raise AudioError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def _pieces(stream: AudioStream, settings: DecodeSettings, slot: Samples) -> Blocks:
    rate = stream.sample_rate
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"has a sample rate of {rate} Hz; expected {MIN_RATE} to {MAX_RATE} Hz")
    meter = FlagMeter(stream.channels, rate)
    digest = hashlib.blake2b(f"{rate} {stream.channels} ".encode(), digest_size=16)
    kept = stream.channels if settings.channels and stream.channels <= MOST_CHANNELS else 1
    filled = 0
    try:
        for chunk in stream.chunks:
            size = len(chunk) * kept
            if filled + size > SLOT:
                yield Block(slot[:filled], rate, None, kept)
                filled = 0
            place = slot[filled : filled + size]
            meter.add(chunk, place if kept == 1 else np.empty(len(chunk), np.float32))
            if kept > 1:
                place[:] = chunk.ravel()
            if settings.digest:
                digest.update(np.ascontiguousarray(chunk, "<f4").data)
            filled += size
    except AudioError:
        # Blocks before the damage come out whole.
        yield Block(slot[:filled], rate, None, kept)
        raise
    if meter.samples == 0:
        raise AudioError("holds no audio samples")
    flags = meter.flags(settings, stream.missing, stream.cut, stream.incomplete)
    mark = digest.hexdigest() if settings.digest else ""
    facts = SongFacts(meter.samples, rate, stream.channels, flags, mark, meter.mono_loss)
    yield Block(slot[:filled], rate, facts, kept)


def joined(pieces: Blocks) -> Blocks:
    """Pieces as blocks of `BLOCK_SECONDS`, then `NEXT_SECONDS` each, the last one shorter."""
    block, filled = np.empty(0, np.float32), 0
    with closing(pieces):
        for piece in pieces:
            rest, rate, kept = piece.samples, piece.sample_rate, piece.channels
            # Pages that are never written take no memory: short songs pay for their own length.
            if block.size == 0:
                block = np.empty(round(BLOCK_SECONDS * rate * kept), np.float32)
            while len(rest):
                if filled == block.size:
                    yield Block(block, rate, None, kept)
                    block, filled = np.empty(round(NEXT_SECONDS * rate * kept), np.float32), 0
                part = rest[: block.size - filled]
                block[filled : filled + len(part)] = part
                filled, rest = filled + len(part), rest[len(part) :]
        block.resize(filled, refcheck=False)
        yield Block(block, rate, piece.facts, kept)


def blocks_of(open_stream: OpenStream, settings: DecodeSettings) -> Blocks:
    """The blocks of a song, decoded in this process; errors as in `mono_pieces`."""
    return joined(mono_pieces(open_stream, settings, np.empty(SLOT, np.float32)))
