"""Flags: what is unusual about a song that was scored all the same.

Each is a plain fact about the decoded song with a threshold in physical units; none changes a
score. They are the reasons a score may not mean what it seems to. Files, bytes, arrays and tensors
have the same meter.

Shape key: C = channels, n = samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from apex_reward.errors import AudioError

SILENT_POWER = 1e-6
"""`silent`: mean power of the mono mix over the whole song (-60 dB relative to full scale)."""
CLIPPED_SHARE = 1e-3
"""`clipped`: share of a channel's samples that are cut off at full scale or lie beyond it."""
FULL_SCALE = 0.999
"""Level from which two equal neighbours count as cut off (16-bit full scale is 0.99997)."""
SHORT_SHARE = 0.5
"""`short`: length as a share of the encoder's segment; below it, most of the input is padding."""
DUPLICATE_WITHIN = 1e-4
"""`mono-duplicate`: largest difference between channels (-80 dBFS)."""
CANCELLED_POWER = 1e-2
"""`phase-cancelled`: power of the mono mix relative to that of the channels (-20 dB)."""
CANCELLED_SHARE = 0.1
"""`phase-cancelled`: share of the seconds with sound in which the channels cancel."""
TRUNCATED_SECONDS = 0.5
"""`truncated`: seconds of audio that the file's header promises and that are not there."""
INTEGER_LIKE_PEAK = 256.0
"""Level above which samples are integers in a float file: no mix goes 48 dB over full scale."""
TRAP_SECONDS = 5
"""The mono mix's loss is that of the worst window of this many seconds."""
MOST_LOST = 100.0
"""Largest loss of the mono mix in dB: nothing is left of it."""
HALVES = np.full(2, 0.5, np.float32)

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class DecodeSettings:
    """What the flags depend on, and whether the identity of the sound is wanted.

    Args:
        segment_seconds: length of the encoder's segments.
        model_rate: the encoder's sample rate in Hz. Decoded samples keep the file's own rate.
        digest: also compute the identity of the sound; this takes longer than reading a WAV.
        channels: keep up to six channels beside their mono mix, for models that read them.
    """

    segment_seconds: float
    model_rate: int
    digest: bool = False
    channels: bool = False


@dataclass(frozen=True)
class SongFacts:
    """What is known about a song once it is decoded.

    Attributes:
        samples: per channel, counted as they were decoded.
        sample_rate: of the file in Hz.
        channels: of the file.
        flags: as in `FlagMeter.flags`.
        digest: equal for two songs of the same samples in every channel, rate and channels,
            whatever they are stored in; empty unless the settings ask for it.
        mono_loss: as `mono_loss`, in dB.
    """

    samples: int
    sample_rate: int
    channels: int
    flags: list[str]
    digest: str = ""
    mono_loss: float = 0.0

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / self.sample_rate


class FlagMeter:
    """Mixes a song to mono and measures it, chunk by chunk, while the chunk is in cache.

    The flags do not depend on where the chunks end.
    """

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.samples = 0
        self._rate, self._channels = sample_rate, channels
        # Of each second: energy of the mono mix, mean energy of a channel, samples.
        self._seconds: list[list[float]] = []
        self._apart = False
        self._clipped = np.zeros(channels, np.int64)
        self._last = np.zeros((0, channels), np.float32)

    def add(self, chunk: Samples, mono: Samples) -> None:
        """Measure the next chunk (n, C) and write its mean over the channels to `mono` (n,).

        Raises:
            AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
        """
        # Both are NaN where any sample is.
        peak = max(float(chunk.max()), -float(chunk.min()))
        if not peak <= INTEGER_LIKE_PEAK:
            check_finite(chunk, self.samples, self._rate)
            raise AudioError(
                f"peaks at {peak:.0f}; samples should lie in [-1, 1] "
                "(divide integer samples by their full scale, 32768 for 16 bits)"
            )
        mix(chunk, mono)
        self._add_energy(chunk, mono)
        if self._channels > 1 and not self._apart:
            self._apart = bool(np.abs(chunk - chunk[:, :1]).max() > DUPLICATE_WITHIN)
        if peak >= FULL_SCALE:
            self._clipped += self._count_clipped(chunk)
        self.samples += len(chunk)
        self._last = chunk[-1:].copy()

    def _add_energy(self, chunk: Samples, mono: Samples) -> None:
        start = 0
        while start < len(mono):
            if not self._seconds or self._seconds[-1][2] == self._rate:
                self._seconds.append([0.0, 0.0, 0])
            second = self._seconds[-1]
            stop = min(len(mono), start + self._rate - int(second[2]))
            one, every = mono[start:stop], chunk[start:stop].ravel(order="K")
            second[0] += float(np.dot(one, one))
            second[1] += float(np.dot(every, every)) / self._channels
            second[2] += stop - start
            start = stop

    def _count_clipped(self, chunk: Samples) -> NDArray[np.int64]:
        """Samples of each channel beyond 1, or flat at full scale.

        A lossless file that was cut off holds runs of one value; decoded from a lossy format the
        same song overshoots 1. A clean sine that just touches full scale does neither.
        """
        whole = np.concatenate([self._last, chunk])
        beyond = np.abs(chunk) > 1.0
        flat = (whole[1:] == whole[:-1]) & (np.abs(whole[1:]) >= FULL_SCALE)
        beyond[len(chunk) - len(flat) :] |= flat
        return beyond.sum(axis=0)

    @property
    def mono_loss(self) -> float:
        """`mono_loss` of the song so far, dB."""
        return mono_loss(self._seconds)

    def flags(
        self,
        settings: DecodeSettings,
        missing: int = 0,
        cut: bool = False,
        incomplete: bool = False,
    ) -> list[str]:
        """The flags of the whole song, in a fixed order.

        Args:
            settings: the encoder's segment length and rate.
            missing: samples per channel that the header promised and that were not there.
            cut: the file ends inside a packet.
            incomplete: the file holds sound that could not be decoded.

        Returns:
            Any of `silent`, `clipped`, `short`, `mono-duplicate`, `phase-cancelled` (over the song,
            or in a tenth of its seconds with sound), `truncated`, `incomplete`, and `upsampled`
            (recorded at a lower rate than the encoder's: nothing above half that rate).
        """
        samples = max(1, self.samples)
        mono, every, counts = np.array(self._seconds or [[0.0, 0.0, 1]]).T
        sounds = every >= SILENT_POWER * counts
        # A beginning of a second counts as one only where no whole second has sound.
        whole = sounds & (counts == self._rate)
        sounds = whole if whole.any() else sounds
        cancelled = sounds & (mono < CANCELLED_POWER * every)
        checks = {
            "silent": mono.sum() < SILENT_POWER * samples,
            "clipped": self._clipped.max() / samples >= CLIPPED_SHARE,
            "short": samples < SHORT_SHARE * settings.segment_seconds * self._rate,
            "mono-duplicate": self._channels > 1 and not self._apart,
            "phase-cancelled": mono.sum() < CANCELLED_POWER * every.sum()
            or cancelled.sum() / max(1, sounds.sum()) >= CANCELLED_SHARE,
            "truncated": cut or missing > TRUNCATED_SECONDS * self._rate,
            "incomplete": incomplete,
            "upsampled": self._rate < settings.model_rate,
        }
        return [name for name, holds in checks.items() if holds]


def mono_loss(seconds: Sequence[Sequence[float]]) -> float:
    """The power, in dB, that the mono mix loses in the worst 5 s of a song.

    The loss is against the mean power of the channels. It is 0 for equal channels, 3 for channels
    without correlation, and at most 100.

    Args:
        seconds: of each second of the song, in order: the energy of the mono mix, the mean energy
            of a channel, and the number of samples. The last one may be shorter.

    Returns:
        The largest loss of all windows of five seconds above -60 dBFS; 0 where there is none.
    """
    if not seconds:
        return 0.0
    windows = sliding_window_view(np.array(seconds), min(TRAP_SECONDS, len(seconds)), axis=0)
    mono, every, counts = windows.sum(axis=-1).T
    sounds = every > SILENT_POWER * counts
    left = np.maximum(mono, every * 10 ** (-MOST_LOST / 10))
    return float((10 * np.log10(every[sounds] / left[sounds])).max(initial=0.0))


def mix(chunk: Samples, mono: Samples) -> None:
    """Write the mean over the channels of (n, C) to (n,): every channel counts 1 / C."""
    if chunk.shape[1] == 1:
        mono[:] = chunk[:, 0]
    elif chunk.shape[1] == 2:  # the same numbers in a third of the time
        np.dot(chunk, HALVES, out=mono)
    else:
        np.ascontiguousarray(chunk.T).mean(axis=0, dtype=np.float32, out=mono)


def check_finite(chunk: Samples, before: int, rate: int) -> None:
    """Raise AudioError naming the second of the first sample of (n, C) that is NaN or infinite."""
    finite = np.isfinite(chunk)
    if not finite.all():
        first = (before + int(np.argmin(finite.all(axis=1)))) / rate
        raise AudioError(f"holds NaN or infinite samples, the first at {first:.3f} s")
