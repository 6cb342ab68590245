"""Decode one song for scoring: mono samples, facts and flags, or the reason why not. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apex_reward.audio import load_audio
from apex_reward.audio.decoding.flags import song_flags
from apex_reward.errors import AudioError

MIN_RATE = 2_000
"""Hz; a file that claims less holds no music, and resampled it would grow without bound."""


@dataclass(frozen=True)
class DecodeSettings:
    """What the model needs of a song: segment length in seconds and sample rate in Hz.

    They set the thresholds of the flags; decoded samples keep the file's own rate.
    """

    segment_seconds: float
    model_rate: int


@dataclass(frozen=True)
class DecodedSong:
    """A song as the encoder hears it, before resampling.

    Attributes:
        mono: (T,) float32 mean of the channels; empty where there is an `error`.
        sample_rate: of the file in Hz; 0 where there is an `error`.
        flags: as in `song_flags`.
        error: why the song cannot be scored, or None.
    """

    mono: NDArray[np.float32]
    sample_rate: int
    flags: list[str]
    error: str | None = None
    path: str = ""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The song in one mono block (T,)."""
        yield self.mono

    @property
    def facts(self) -> DecodedSong:
        """What was found while it was decoded: its `flags`."""
        return self

    def close(self) -> None:
        """Nothing is held."""

    @classmethod
    def failed(cls, reason: str) -> DecodedSong:
        """A song that cannot be scored, with the reason."""
        return cls(np.zeros(0, np.float32), 0, [], reason)


def decode_song(path: str, settings: DecodeSettings) -> DecodedSong:
    """Decode a file, whatever is in it; every failure becomes the result's `error`."""
    try:
        waveform = load_audio(path)
        if waveform.sample_rate < MIN_RATE:
            raise AudioError(
                f"has a sample rate of {waveform.sample_rate} Hz; at least {MIN_RATE} is needed"
            )
        mono = waveform.mono
        flags = song_flags(waveform, mono, settings.segment_seconds, settings.model_rate)
    except AudioError as error:
        return DecodedSong.failed(str(error))
    except Exception as error:
        # Whatever a decoder throws at a damaged file is that file's failure, not the run's.
        return DecodedSong.failed(f"cannot be decoded: {type(error).__name__}: {error}")
    return DecodedSong(mono, waveform.sample_rate, flags)
