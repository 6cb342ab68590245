"""Flags: what is odd about a song that was scored all the same.

Each is a plain fact about the decoded file with a threshold in physical units; none changes a
score. They are the reasons a score may not mean what it seems to.

Shape key: C = channels, T = samples per channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apex_reward.audio import Waveform

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


def song_flags(
    waveform: Waveform, mono: Samples, segment_seconds: float, model_rate: int
) -> list[str]:
    """The flags of one decoded song, in a fixed order.

    Args:
        waveform: as decoded (files with floats may go beyond [-1, 1]).
        mono: (T,) mean of the channels, which is what the encoder hears.
        segment_seconds: length of the encoder's segments.
        model_rate: the encoder's sample rate, in Hz.

    Returns:
        Any of `silent`, `clipped`, `short`, `mono-duplicate`, `phase-cancelled`, `truncated`, and
        `upsampled` (recorded at a lower rate than the encoder's: nothing above half that rate).
    """
    samples, rate = waveform.samples, waveform.sample_rate
    promised = waveform.promised or 0
    level = _rms(mono)
    checks = {
        "silent": level < 10 ** (SILENT_BELOW_DBFS / 20),
        "clipped": _clipped_share(samples) >= CLIPPED_SHARE,
        "short": mono.size < SHORT_SHARE * segment_seconds * rate,
        "mono-duplicate": _is_duplicate(samples),
        "phase-cancelled": level < 10 ** (CANCELLED_DB / 20) * _rms(samples),
        "truncated": promised - mono.size > TRUNCATED_SECONDS * rate,
        "upsampled": rate < model_rate,
    }
    return [name for name, holds in checks.items() if holds]


def _rms(samples: Samples) -> float:
    flat = samples.reshape(-1)
    return float(np.sqrt(np.vdot(flat, flat) / flat.size))


def _clipped_share(samples: Samples) -> float:
    """Largest share over channels of samples beyond 1, or flat at full scale.

    A lossless file that was cut off holds runs of one value; decoded from a lossy format the
    same song overshoots 1. A clean sine that just touches full scale does neither.
    """
    beyond = np.abs(samples) > 1.0
    flat = (samples[:, 1:] == samples[:, :-1]) & (np.abs(samples[:, 1:]) >= FULL_SCALE)
    beyond[:, 1:] |= flat
    return float(beyond.mean(axis=1).max())


def _is_duplicate(samples: Samples) -> bool:
    first, *others = samples
    return bool(others) and all(np.abs(o - first).max() <= DUPLICATE_WITHIN for o in others)
