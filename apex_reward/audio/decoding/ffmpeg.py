"""What libsndfile does not read (AAC, M4A, WMA, WebM), through torchcodec where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_reward.errors import AudioError

STEP_SECONDS = 10.0
# First bytes, from where they stand, and what they are.
_MARKS = (
    (4, b"ftyp", "M4A or MP4 audio"),
    (0, b"\x30\x26\xb2\x75", "WMA audio"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska audio"),
    (0, b"\xff\xf1", "AAC audio"),
    (0, b"\xff\xf9", "AAC audio"),
)


@dataclass
class Decoded:
    """Rate in Hz, channels C, and the samples as (n, C) float32 chunks."""

    sample_rate: int
    channels: int
    chunks: Iterator[npt.NDArray[np.float32]]


def format_name(head: bytes) -> str | None:
    """The format that a file's first bytes show, for a message; None if it is none of these."""
    return next((name for at, mark, name in _MARKS if head[at:].startswith(mark)), None)


def chunks(source: str | bytes) -> Decoded | None:
    """Decode a file, or its bytes, in steps; None without torchcodec or where FFmpeg fails too."""
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):
        return None
    try:
        decoder = AudioDecoder(source)
        first = _step(decoder, 0.0)
    except (RuntimeError, ValueError):
        return None
    rate, channels = int(decoder.metadata.sample_rate), first.shape[1]
    return Decoded(rate, channels, _steps(decoder, first))


def _steps(decoder: Any, chunk: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    start, end = 0.0, decoder.metadata.duration_seconds
    while len(chunk):
        yield chunk
        start += STEP_SECONDS
        if end is not None and start >= end:
            return
        try:
            chunk = _step(decoder, start)
        except (RuntimeError, ValueError) as error:
            if end is None:  # the only way to learn where it ends
                return
            raise AudioError(f"is damaged at {start:.1f} s ({error})") from error


def _step(decoder: Any, start: float) -> npt.NDArray[np.float32]:
    played = decoder.get_samples_played_in_range(start, start + STEP_SECONDS)
    return np.ascontiguousarray(played.data.float().numpy().T)
