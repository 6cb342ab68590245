"""Samples on their way from a decoder: the chunks and what is known of their file.

Shape key: C = channels, n = samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
CHUNK = 1 << 15
"""Samples per channel of one read: they stay in cache while they are mixed and measured."""
GAP_SECONDS = 0.5
"""Sound that is missing for longer is worth a flag."""


@dataclass
class AudioStream:
    """One file on its way.

    Attributes:
        sample_rate: in Hz.
        channels: C; a part of the file with another number is brought to it by its mean.
        chunks: the samples, (n, C) float32 each, n up to `CHUNK`; the next chunk may overwrite the
            memory of the one before. Raises AudioError on damage.
        missing: once the chunks are read: samples that the header promised and that were not there.
        cut: the file ends inside a packet.
        incomplete: it holds sound that could not be decoded (a broken packet, a gap, a part of
            another sample rate).
    """

    sample_rate: int
    channels: int
    chunks: Iterator[Samples]
    missing: int = 0
    cut: bool = False
    incomplete: bool = False


def with_channels(chunk: Samples, channels: int) -> Samples:
    """A chunk (n, C) with so many channels: itself, or its mean in each of them."""
    if chunk.shape[1] == channels:
        return chunk
    return np.repeat(chunk.mean(axis=1, keepdims=True, dtype=np.float32), channels, axis=1)
