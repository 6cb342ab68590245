"""Flags: what is odd about a song that was scored all the same.

Each is a plain fact about the decoded file with a threshold in physical units; none changes a
score. They are the reasons a score may not mean what it seems to.

Shape key: C = channels, n = samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SILENT_BELOW_DBFS = -60.0
"""`silent`: RMS of the mono mix over the whole song, in dB relative to full scale."""
CLIPPED_SHARE = 1e-3
"""`clipped`: share of a channel's samples that are cut off at full scale or lie beyond it."""
FULL_SCALE = 0.999
"""Level from which two equal neighbours count as cut off (16-bit full scale is 0.99997)."""
SHORT_SHARE = 0.5
"""`short`: length as a share of the encoder's segment; below it, most of the input is padding."""
DUPLICATE_WITHIN = 1e-4
"""`mono-duplicate`: largest difference between channels (-80 dBFS)."""
CANCELLED_DB = -20.0
"""`phase-cancelled`: RMS of the mono mix relative to that of the channels, in dB."""
TRUNCATED_SECONDS = 0.5
"""`truncated`: seconds of audio that the file's header promises and that are not there."""

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class FlagSettings:
    """What the thresholds of `short` and `upsampled` depend on.

    Args:
        segment_seconds: length of the encoder's segments.
        model_rate: the encoder's sample rate, in Hz.
    """

    segment_seconds: float
    model_rate: int


class FlagMeter:
    """Measures a song chunk by chunk; its flags do not depend on where the chunks end."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self._rate = sample_rate
        self._samples = 0
        self._mono_power = self._power = self._apart = 0.0
        self._clipped = np.zeros(channels, np.int64)
        self._last: Samples | None = None

    def add(self, chunk: Samples, mono: Samples) -> None:
        """The next chunk (n, C) and its mean over the channels (n,), which the encoder hears."""
        self._samples += len(chunk)
        self._mono_power += float(np.vdot(mono, mono))
        self._power += float(np.vdot(chunk, chunk))
        if chunk.shape[1] > 1:
            self._apart = max(self._apart, float(np.abs(chunk - chunk[:, :1]).max()))
        self._clipped += self._count_clipped(chunk)
        self._last = chunk[-1:].copy()

    def _count_clipped(self, chunk: Samples) -> NDArray[np.int64]:
        """Samples of each channel beyond 1, or flat at full scale.

        A lossless file that was cut off holds runs of one value; decoded from a lossy format the
        same song overshoots 1. A clean sine that just touches full scale does neither.
        """
        level = np.abs(chunk)
        if not level.max() >= FULL_SCALE:
            return np.zeros(chunk.shape[1], np.int64)
        before = chunk[:0] if self._last is None else self._last
        whole = np.concatenate([before, chunk])
        beyond = level > 1.0
        flat = (whole[1:] == whole[:-1]) & (np.abs(whole[1:]) >= FULL_SCALE)
        beyond[len(chunk) - len(flat) :] |= flat
        return beyond.sum(axis=0)

    def flags(
        self, settings: FlagSettings, missing: int = 0, also: Sequence[str] = ()
    ) -> list[str]:
        """The flags of the song so far, in a fixed order.

        Args:
            settings: the encoder's segment length and rate.
            missing: samples per channel that the header promised and that were not there.
            also: flags known from reading the file, of `truncated` and `incomplete`.

        Returns:
            Any of `silent`, `clipped`, `short`, `mono-duplicate`, `phase-cancelled`, `truncated`,
            `incomplete` (the file holds sound that could not be heard), and `upsampled` (recorded
            at a lower rate than the encoder's: nothing above half that rate).
        """
        samples, channels = max(1, self._samples), self._clipped.size
        level = (self._mono_power / samples) ** 0.5
        checks = {
            "silent": level < 10 ** (SILENT_BELOW_DBFS / 20),
            "clipped": self._clipped.max() / samples >= CLIPPED_SHARE,
            "short": samples < SHORT_SHARE * settings.segment_seconds * self._rate,
            "mono-duplicate": channels > 1 and self._apart <= DUPLICATE_WITHIN,
            "phase-cancelled": level
            < 10 ** (CANCELLED_DB / 20) * (self._power / (samples * channels)) ** 0.5,
            "truncated": missing > TRUNCATED_SECONDS * self._rate or "truncated" in also,
            "incomplete": "incomplete" in also,
            "upsampled": self._rate < settings.model_rate,
        }
        return [name for name, holds in checks.items() if holds]
