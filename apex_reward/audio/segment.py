"""Songs to fixed-length segments: cut, zero-pad the last, and say what is real.

Shape key: B = songs, T = samples, N = segments of all songs together, n = samples in a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward.errors import expect_one_of

SegmentTail = Literal["pad", "mask", "drop"]
SEGMENT_TAILS = get_args(SegmentTail)
# `drop` leaves out a tail shorter than this.
MIN_TAIL_SECONDS = 5.0


@dataclass(frozen=True)
class Segments:
    """Segments of a batch of songs, packed without gaps in song order.

    samples: (N, n), zero beyond the real audio. The others are on the CPU, where reading them waits
    for no GPU. song: (N,) int64, which song each belongs to. real: (N,) int64, real samples in
    each. weight: (N,) float64, of each in its song's mean: its real samples, or 1 where all
    count alike.
    """

    samples: Tensor
    song: Tensor
    real: Tensor
    weight: Tensor

    def song_means(self, values: Tensor, songs: int) -> Tensor:
        """Weighted mean over each song's segments: (N, ...) -> (songs, ...)."""
        totals = torch.zeros(songs, dtype=torch.float64).index_add(0, self.song, self.weight)
        shares = (self.weight / totals[self.song]).to(values)
        means = values.new_zeros(songs, *values.shape[1:])
        weighted = values * shares.view(-1, *[1] * (values.ndim - 1))
        return means.index_add(0, self.song.to(values.device), weighted)


def cut_segments(
    waveforms: Tensor,
    lengths: Sequence[int],
    segment_samples: int,
    sample_rate: int,
    tail: str = "pad",
) -> Segments:
    """Cut songs (B, T) of the given real lengths into segments of `segment_samples`.

    Args:
        waveforms: (B, T), zero beyond each song's length; on the autograd graph.
        lengths: real samples of each song, 1 to T.
        segment_samples: n, 720,000 for 30 s at 24 kHz.
        sample_rate: of the waveforms in Hz; it sets how short a tail `drop` leaves out.
        tail: `pad` (the published convention: the padded tail counts as a whole segment), `mask`
            (segments weigh by their real length) or `drop` (a tail under 5 s is left out, never a
            song's only segment).
    """
    expect_one_of("segment tail", tail, SEGMENT_TAILS)
    real = [segment_lengths(n, segment_samples, sample_rate, tail) for n in lengths]
    most = max(map(len, real), default=0)
    padded = F.pad(waveforms, (0, most * segment_samples - waveforms.shape[1]))
    grid = padded.reshape(len(real), most, segment_samples)
    kept = [(i, j) for i, parts in enumerate(real) for j in range(len(parts))]
    song, position = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2).T
    lasting = torch.tensor([n for parts in real for n in parts], dtype=torch.int64)
    return Segments(
        samples=grid.flatten(0, 1) if len(kept) == len(real) * most else grid[song, position],
        song=song,
        real=lasting,
        weight=(lasting if tail == "mask" else torch.ones_like(lasting)).double(),
    )


def segment_lengths(length: int, segment_samples: int, sample_rate: int, tail: str) -> list[int]:
    """Real samples in each segment of a song of `length` samples.

    >>> segment_lengths(25, segment_samples=10, sample_rate=1, tail="pad")
    [10, 10, 5]
    >>> segment_lengths(24, segment_samples=10, sample_rate=1, tail="drop")
    [10, 10]
    """
    whole, rest = divmod(length, segment_samples)
    lengths = [segment_samples] * whole
    too_short = tail == "drop" and whole > 0 and rest < MIN_TAIL_SECONDS * sample_rate
    return lengths if rest == 0 or too_short else [*lengths, rest]
