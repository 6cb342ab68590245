"""A song as the guards hear it: what several measures need is computed once.

Shape key: T = samples, F = frames, K = frequency bins.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from scipy import fft
from torch import Tensor

from apex_reward.audio.resample import sinc_kernel

LOW_RATE = 8_000
SHORT_SECONDS = 0.043
LONG_SECONDS = 1.0
FRAME_SECONDS = 0.05
PART_SAMPLES = 1 << 17
DECIMATED = 16


class Song:
    """A mono song (T,) float32, T at least 1, with its sample rate in Hz."""

    def __init__(self, waveform: Tensor, sample_rate: int) -> None:
        self.waveform = waveform
        self.sample_rate = sample_rate

    @property
    def length(self) -> int:
        """T."""
        return len(self.waveform)

    @property
    def short_size(self) -> int:
        """Samples of a short frame, a power of two."""
        return 1 << max(5, round(math.log2(self.sample_rate * SHORT_SECONDS)))

    @property
    def short_hertz(self) -> Tensor:
        """(K,) frequencies of `power`."""
        bins = torch.arange(self.short_size // 2 + 1, device=self.waveform.device)
        return bins * (self.sample_rate / self.short_size)

    @cached_property
    def power(self) -> Tensor:
        """|STFT|^2 (F, K) in 43 ms Hann frames that overlap by half, whole frames only."""
        return frame_power(self.waveform, self.short_size)

    @cached_property
    def whole_power(self) -> Tensor:
        """(K,) sum of `power` over the frames."""
        return self.power.sum(dim=0)

    @property
    def frame_size(self) -> int:
        """Samples in 50 ms."""
        return max(1, round(FRAME_SECONDS * self.sample_rate))

    @cached_property
    def frame_energy(self) -> Tensor:
        """(F,) sums of squares of frames of 50 ms without overlap; the last one zero-padded."""
        return torch.linalg.vector_norm(frames(self.waveform, self.frame_size), dim=1).square()

    @cached_property
    def square(self) -> Tensor:
        """() power with the mean, in double precision."""
        return self.frame_energy.sum(dtype=torch.float64) / self.length

    @cached_property
    def mean_square(self) -> Tensor:
        """() power without the mean."""
        # In double precision: a constant leaves rounding errors only.
        mean = self.waveform.sum(dtype=torch.float64) / self.length
        return (self.square - mean.square()).clamp(min=0).to(self.waveform.dtype)

    @property
    def divisor(self) -> int:
        """What the rate is divided by for `low`: a whole number, so any odd rate is quick."""
        return max(1, self.sample_rate // LOW_RATE)

    @property
    def low_rate(self) -> float:
        """Hz of `low`, 8 to 16 kHz (the song's own rate below 8 kHz)."""
        return self.sample_rate / self.divisor

    @cached_property
    def low(self) -> Tensor:
        """(t,) the song at `low_rate`, without its mean."""
        low = _decimated(self.waveform, self.divisor)
        return low - low.mean()

    def low_spectrum(self) -> tuple[Tensor, Tensor]:
        """Summed |STFT|^2 (k,) of `low` in 1 s Hann frames, and the frequencies (k,) in Hz."""
        size = 1 << round(math.log2(max(32.0, self.low_rate * LONG_SECONDS)))
        # A frame starts every half second of the song; the last ones reach into the zeros.
        count = -(-len(self.low) // (size // 2))
        padded = F.pad(self.low, (0, (count + 1) * (size // 2) - len(self.low)))
        power = frame_power(padded, size).sum(dim=0)
        return power, torch.arange(len(power), device=power.device) * (self.low_rate / size)


def frames(waveforms: Tensor, size: int) -> Tensor:
    """(..., F, size) frames of (..., T) without overlap; the last one zero-padded."""
    missing = -waveforms.shape[-1] % size
    padded = F.pad(waveforms, (0, missing)) if missing else waveforms
    return padded.unflatten(-1, (-1, size))


def frame_power(waveform: Tensor, size: int) -> Tensor:
    """|STFT|^2 (F, K) in Hann frames of `size` samples that overlap by half."""
    if len(waveform) < size:
        return waveform.new_zeros(0, size // 2 + 1)
    window = torch.hann_window(size, device=waveform.device)
    windows = waveform.unfold(0, size, size // 2)
    # On a CPU in parts that stay in its cache.
    together = max(1, PART_SAMPLES // size) if windows.is_cpu else len(windows)
    power = waveform.new_empty(len(windows), size // 2 + 1)
    for start in range(0, len(windows), together):
        spectrum = torch.fft.rfft(windows[start : start + together] * window)
        real, imaginary = torch.view_as_real(spectrum).unbind(dim=-1)
        power[start : start + together] = real.square().addcmul(imaginary, imaginary)
    return power


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


def _decimated(waveform: Tensor, divisor: int) -> Tensor:
    """`resample` (T,) by a whole number: (ceil(T / divisor),), as a product of matrices."""
    if divisor == 1:
        return waveform
    width, kernel = sinc_kernel(divisor, 1, waveform)
    size, reach = DECIMATED * divisor, 2 * width
    matrix = waveform.new_zeros(size + reach, DECIMATED)
    for n in range(DECIMATED):
        matrix[n * divisor : (n + 1) * divisor + reach, n] = kernel[0]
    length = -(-len(waveform) // divisor)
    missing = (-(-length // DECIMATED) + 1) * size - width - len(waveform)
    rows = F.pad(waveform, (width, missing)).unflatten(0, (-1, size))
    # A block's last outputs reach into the samples of the next block.
    output = rows[:-1] @ matrix[:size] + rows[1:, :reach] @ matrix[size:]
    return output.flatten()[:length]
