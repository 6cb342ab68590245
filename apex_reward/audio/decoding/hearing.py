"""A stream of samples as the encoder hears it: mono blocks, and the facts once it has ended.

Shape key: C = channels, n = samples of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apex_reward.audio.decoding.flags import FlagMeter, FlagSettings
from apex_reward.audio.decoding.stream import AudioStream
from apex_reward.errors import AudioError

BLOCK_SECONDS = 300.0
"""Longest block, the first: a song up to this length is one block."""
NEXT_SECONDS = 30.0
"""Of the blocks behind it: what reads ahead of a long song then holds little more than a short one.
"""
MIN_RATE = 2_000
"""Hz; a file that claims less holds no music, and resampled it would grow without bound."""

INTEGER_LIKE_PEAK = 256.0
"""Level above which samples are integers in a float file: no mix goes 48 dB over full scale."""


@dataclass(frozen=True)
class DecodeSettings:
    """What the model needs of a song: segment length in seconds and sample rate in Hz.

    They set the thresholds of the flags; decoded samples keep the file's own rate.
    `digest` asks for the mark of the sound as well, which takes longer than reading a WAV.
    """

    segment_seconds: float
    model_rate: int
    digest: bool = False


@dataclass(frozen=True)
class SongFacts:
    """What was heard of a song.

    Attributes:
        samples: per channel, counted as they were decoded.
        sample_rate: of the file in Hz.
        channels: of the file.
        flags: as in `FlagMeter.flags`.
        digest: equal for two songs of the same samples in every channel, rate and channels,
            whatever they are stored in; empty unless the settings ask for it.
    """

    samples: int
    sample_rate: int
    channels: int
    flags: list[str]
    digest: str = ""

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Block:
    """Mono samples (n,) float32 at a rate in Hz; the last block of a song has its facts."""

    samples: NDArray[np.float32]
    sample_rate: int
    facts: SongFacts | None = None


def hear(stream: AudioStream, settings: DecodeSettings) -> Iterator[Block]:
    """The blocks of a song: `BLOCK_SECONDS`, then `NEXT_SECONDS` each, the last one shorter.

    Raises:
        AudioError: a rate below `MIN_RATE`, damage, NaN or infinite samples, or no samples.
    """
    rate = stream.sample_rate
    with closing(stream):
        if rate < MIN_RATE:
            raise AudioError(f"has a sample rate of {rate} Hz; at least {MIN_RATE} is needed")
        meter = FlagMeter(stream.channels, rate)
        digest = hashlib.blake2b(f"{rate} {stream.channels} ".encode(), digest_size=16)
        heard, filled = 0, 0
        block = _empty(BLOCK_SECONDS * rate)
        for chunk in stream.chunks:
            check_finite(chunk, heard, rate)
            _check_level(chunk)
            mono = mono_of(chunk)
            meter.add(chunk, mono)
            if settings.digest:
                digest.update(np.ascontiguousarray(chunk, "<f4").data)
            heard += len(mono)
            while len(mono):
                if filled == block.size:
                    yield Block(block, rate)
                    block, filled = _empty(NEXT_SECONDS * rate), 0
                part = mono[: block.size - filled]
                block[filled : filled + len(part)] = part
                filled += len(part)
                mono = mono[len(part) :]
    if heard == 0:
        raise AudioError("holds no audio samples")
    also = [name for name, holds in _read_flags(stream).items() if holds]
    flags = meter.flags(
        FlagSettings(settings.segment_seconds, settings.model_rate), stream.missing, also
    )
    mark = digest.hexdigest() if settings.digest else ""
    facts = SongFacts(heard, rate, stream.channels, flags, mark)
    yield Block(block[:filled].copy(), rate, facts)


def mono_of(chunk: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over the channels of (n, C), (n,)."""
    if chunk.shape[1] == 1:
        return chunk[:, 0]
    mean: NDArray[np.float32] = np.ascontiguousarray(chunk.T).mean(axis=0, dtype=np.float32)
    return mean


def check_finite(chunk: NDArray[np.float32], before: int, rate: int) -> None:
    """Raise AudioError naming the second of the first sample of (n, C) that is NaN or infinite."""
    finite = np.isfinite(chunk)
    if not finite.all():
        first = (before + int(np.argmin(finite.all(axis=1)))) / rate
        raise AudioError(f"holds NaN or infinite samples, the first at {first:.3f} s")


def _check_level(chunk: NDArray[np.float32]) -> None:
    peak = float(np.abs(chunk).max())
    if peak > INTEGER_LIKE_PEAK:
        raise AudioError(
            f"peaks at {peak:.0f}; samples should lie in [-1, 1] "
            "(divide integer samples by their full scale, 32768 for 16 bits)"
        )


def _read_flags(stream: AudioStream) -> dict[str, bool]:
    return {"truncated": stream.cut, "incomplete": stream.incomplete}


def _empty(samples: float) -> NDArray[np.float32]:
    # Pages that are never written take no memory: short songs pay for their own length.
    return np.empty(round(samples), np.float32)
