"""A batch of songs as the guards hear it: what several measures need is computed once.

Shape key: B = songs, T = samples, F = frames, K = frequency bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from apex_reward.audio.resample import resample

LOW_RATE = 8_000
SHORT_SECONDS = 0.043
LONG_SECONDS = 1.0


class Songs:
    """Mono songs (B, T) of one rate with their lengths.

    Nothing here depends on how far a song is padded, so a song measures the same in any batch.

    Attributes:
        waveforms: (B, T) float32, zero beyond the lengths.
        lengths: B samples, each at least 1.
        sample_rate: Hz.
    """

    def __init__(self, waveforms: Tensor, lengths: Sequence[int], sample_rate: int) -> None:
        self.lengths = list(lengths)
        self.sample_rate = sample_rate
        self.waveforms = zero_beyond(waveforms, self.lengths)

    @cached_property
    def power(self) -> Tensor:
        """|STFT|^2 (B, K, F) in 43 ms Hann frames that overlap by half, whole frames only."""
        return frame_power(self.waveforms, self.short_size)

    @property
    def short_size(self) -> int:
        """Samples of a short frame, a power of two."""
        return 1 << max(5, round(math.log2(self.sample_rate * SHORT_SECONDS)))

    def short_frames(self, length: int) -> int:
        """How many short frames lie within a song."""
        return max(0, (length - self.short_size) // (self.short_size // 2) + 1)

    @property
    def short_hertz(self) -> Tensor:
        """(K,) frequencies of `power`."""
        bins = torch.arange(self.short_size // 2 + 1, device=self.waveforms.device)
        return bins * (self.sample_rate / self.short_size)

    @cached_property
    def short_mask(self) -> Tensor:
        """(B, F) whether a short frame lies within its song."""
        counts = [self.short_frames(length) for length in self.lengths]
        return within(counts, self.power.shape[2], self.waveforms.device)

    @property
    def divisor(self) -> int:
        """What the rate is divided by for `low`: a whole number, so any odd rate is quick."""
        return max(1, self.sample_rate // LOW_RATE)

    @property
    def low_rate(self) -> float:
        """Hz of `low`, 8 to 16 kHz (the songs' own rate below 8 kHz)."""
        return self.sample_rate / self.divisor

    @cached_property
    def low_lengths(self) -> list[int]:
        """B lengths of `low`."""
        return [-(-length // self.divisor) for length in self.lengths]

    @cached_property
    def low(self) -> Tensor:
        """(B, t) the songs at `low_rate`, each without its mean."""
        low = resample(self.waveforms, self.divisor, 1)
        lengths = low.new_tensor(self.low_lengths)
        low = zero_beyond(low, self.low_lengths)
        return zero_beyond(low - (low.sum(dim=1) / lengths)[:, None], self.low_lengths)

    @cached_property
    def mean_square(self) -> Tensor:
        """(B,) power of each song without its mean."""
        count = self.waveforms.new_tensor(self.lengths)
        # In double precision, or the rounding of a constant would depend on the padding.
        mean = self.waveforms.sum(dim=1, dtype=torch.float64) / count
        return (self.square - mean.square()).clamp(min=0).to(self.waveforms.dtype)

    @cached_property
    def square(self) -> Tensor:
        """(B,) power of each song with its mean."""
        count = self.waveforms.new_tensor(self.lengths)
        return self.waveforms.square().sum(dim=1, dtype=torch.float64) / count

    def low_spectrum(self) -> tuple[Tensor, Tensor]:
        """Mean |STFT|^2 (B, k) of `low` in 1 s Hann frames, and the frequencies (k,) in Hz."""
        size = 1 << round(math.log2(max(32.0, self.low_rate * LONG_SECONDS)))
        hop = size // 2
        # A frame starts every half second of the song; the last ones reach into the zeros.
        counts = [-(-length // hop) for length in self.low_lengths]
        padded = torch.nn.functional.pad(self.low, (0, (max(counts) + 1) * hop - self.low.shape[1]))
        power = frame_power(padded, size)
        mask = within(counts, power.shape[2], power.device)
        hertz = torch.arange(power.shape[1], device=power.device) * (self.low_rate / size)
        return (power * mask[:, None]).sum(dim=2), hertz


def zero_beyond(waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
    """The songs (B, T), zero beyond their lengths."""
    if min(lengths) >= waveforms.shape[1]:
        return waveforms
    return waveforms * within(lengths, waveforms.shape[1], waveforms.device)


def within(counts: Sequence[int], size: int, device: torch.device) -> Tensor:
    """(B, size) bool: which positions come before each count."""
    return torch.arange(size, device=device) < torch.tensor(counts, device=device)[:, None]


def frame_power(waveforms: Tensor, size: int) -> Tensor:
    """|STFT|^2 (B, K, F) in Hann frames of `size` samples that overlap by half."""
    if waveforms.shape[1] < size:
        return waveforms.new_zeros(len(waveforms), size // 2 + 1, 0)
    window = torch.hann_window(size, device=waveforms.device)
    spectrum = torch.stft(
        waveforms, size, size // 2, window=window, center=False, return_complex=True
    )
    return torch.view_as_real(spectrum).square().sum(dim=-1)
