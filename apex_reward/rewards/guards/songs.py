"""A batch of songs as the guards hear it: what several measures need is computed once.

Shape key: B = songs, T = samples, F = frames, K = frequency bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from scipy import fft
from torch import Tensor

from apex_reward.audio.resample import sinc_kernel

LOW_RATE = 8_000
SHORT_SECONDS = 0.043
LONG_SECONDS = 1.0
FRAME_SECONDS = 0.05
PART_SAMPLES = 1 << 17
DECIMATED = 16


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
        """|STFT|^2 (B, F, K) in 43 ms Hann frames that overlap by half, whole frames only."""
        return frame_power(self.waveforms, self.short_size)

    @cached_property
    def whole_power(self) -> Tensor:
        """(B, K) sum of `power` over the frames that lie within each song."""
        return sum_of_first(self.power, [self.short_frames(length) for length in self.lengths])

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
        low = zero_beyond(_decimated(self.waveforms, self.divisor), self.low_lengths)
        mean = low.sum(dim=1) / low.new_tensor(self.low_lengths)
        return zero_beyond(low - mean[:, None], self.low_lengths)

    @cached_property
    def mean_square(self) -> Tensor:
        """(B,) power of each song without its mean."""
        count = self.waveforms.new_tensor(self.lengths)
        # Sums of frames in double precision, or a constant's rounding would depend on the padding.
        sums = frames(self.waveforms, self.frame_size).sum(dim=2)
        mean = sums.sum(dim=1, dtype=torch.float64) / count
        return (self.square - mean.square()).clamp(min=0).to(self.waveforms.dtype)

    @cached_property
    def square(self) -> Tensor:
        """(B,) power of each song with its mean."""
        energy = self.frame_energy.sum(dim=1, dtype=torch.float64)
        return energy / self.waveforms.new_tensor(self.lengths)

    @property
    def frame_size(self) -> int:
        """Samples in 50 ms."""
        return max(1, round(FRAME_SECONDS * self.sample_rate))

    @cached_property
    def frame_energy(self) -> Tensor:
        """(B, F) sums of squares of frames of 50 ms without overlap; the last one zero-padded."""
        return torch.linalg.vector_norm(frames(self.waveforms, self.frame_size), dim=2).square()

    def low_spectrum(self) -> tuple[Tensor, Tensor]:
        """Mean |STFT|^2 (B, k) of `low` in 1 s Hann frames, and the frequencies (k,) in Hz."""
        size = 1 << round(math.log2(max(32.0, self.low_rate * LONG_SECONDS)))
        hop = size // 2
        # A frame starts every half second of the song; the last ones reach into the zeros.
        counts = [-(-length // hop) for length in self.low_lengths]
        padded = torch.nn.functional.pad(self.low, (0, (max(counts) + 1) * hop - self.low.shape[1]))
        power = sum_of_first(frame_power(padded, size), counts)
        hertz = torch.arange(power.shape[1], device=power.device) * (self.low_rate / size)
        return power, hertz


def zero_beyond(waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
    """The songs (B, T), zero beyond their lengths."""
    if min(lengths) >= waveforms.shape[1]:
        return waveforms
    return waveforms * within(lengths, waveforms.shape[1], waveforms.device)


def within(counts: Sequence[int], size: int, device: torch.device) -> Tensor:
    """(B, size) bool: which positions come before each count."""
    return torch.arange(size, device=device) < torch.tensor(counts, device=device)[:, None]


def sum_of_first(power: Tensor, counts: Sequence[int]) -> Tensor:
    """(B, K) the sum of each song's first frames in (B, F, K)."""
    return torch.stack([song[:n].sum(dim=0) for song, n in zip(power, counts, strict=True)])


def frames(waveforms: Tensor, size: int) -> Tensor:
    """(B, F, size) frames without overlap; the last one zero-padded."""
    missing = -waveforms.shape[1] % size
    padded = torch.nn.functional.pad(waveforms, (0, missing)) if missing else waveforms
    return padded.unflatten(1, (-1, size))


def frame_power(waveforms: Tensor, size: int) -> Tensor:
    """|STFT|^2 (B, F, K) in Hann frames of `size` samples that overlap by half."""
    if waveforms.shape[1] < size:
        return waveforms.new_zeros(len(waveforms), 0, size // 2 + 1)
    window = torch.hann_window(size, device=waveforms.device)
    windows = waveforms.unfold(1, size, size // 2)
    # On a CPU in parts that stay in its cache.
    together = max(1, PART_SAMPLES // (len(windows) * size)) if windows.is_cpu else windows.shape[1]
    power = waveforms.new_empty(*windows.shape[:2], size // 2 + 1)
    for start in range(0, windows.shape[1], together):
        part = windows[:, start : start + together] * window
        real, imaginary = torch.view_as_real(torch.fft.rfft(part)).unbind(dim=-1)
        power[:, start : start + together] = real.square().addcmul(imaginary, imaginary)
    return power


def _decimated(waveforms: Tensor, divisor: int) -> Tensor:
    """`resample` (B, T) by a whole number: (B, ceil(T / divisor)), as a product of matrices."""
    if divisor == 1:
        return waveforms
    width, kernel = sinc_kernel(divisor, 1, waveforms)
    size, reach = DECIMATED * divisor, 2 * width
    matrix = waveforms.new_zeros(size + reach, DECIMATED)
    for n in range(DECIMATED):
        matrix[n * divisor : (n + 1) * divisor + reach, n] = kernel[0]
    length = -(-waveforms.shape[1] // divisor)
    blocks = -(-length // DECIMATED)
    missing = (blocks + 1) * size - width - waveforms.shape[1]
    rows = torch.nn.functional.pad(waveforms, (width, missing)).reshape(-1, size)
    output = rows @ matrix[:size]
    # A block's last outputs reach into the samples of the next block.
    output[:-1] += rows[1:, :reach] @ matrix[size:]
    return output.reshape(len(waveforms), -1)[:, :length]


def autocorrelation(values: Tensor, lags: int) -> Tensor:
    """Sums of products (..., lags) of values (..., t) with themselves, from lag 0 on."""
    # Sizes with many factors of 2 are the quickest ones.
    twos = 1024 if values.shape[-1] > 1 << 16 else 1
    size = twos * fft.next_fast_len(-(-(values.shape[-1] + lags) // twos), real=True)
    if values.is_cpu and not values.requires_grad:  # of long rows scipy's is the quicker one
        spectrum = fft.rfft(values.numpy(), size)
        power = spectrum.real**2 + spectrum.imag**2
        return torch.from_numpy(fft.irfft(power, size)[..., :lags])
    power = torch.view_as_real(torch.fft.rfft(values, size)).square().sum(dim=-1)
    return torch.fft.irfft(power, size)[..., :lags]
