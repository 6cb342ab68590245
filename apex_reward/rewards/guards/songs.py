"""A song as the guards measure it, in blocks; what several measures need is computed once.

Shape key: T = samples, F = frames, K = frequency bins.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
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
PART_SAMPLES = 1 << 18
DECIMATED = 16
TWIDDLES = 32
BLOCK_SECONDS = 300
# A shorter rest of a song is measured with the block before it: its fade is no song of its own.
TAIL_SECONDS = 30


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
    def peak(self) -> Tensor:
        """() the largest magnitude of a sample."""
        lowest, highest = torch.aminmax(self.waveform)
        return torch.maximum(-lowest, highest)

    @property
    def noise_bins(self) -> slice:
        """The bins of a short frame that noise is measured in, 100 Hz to 10 kHz."""
        # Above 10 kHz lossy codecs leave nothing, and the encoder hears little.
        width, highest = self.sample_rate / self.short_size, min(10_000, 0.45 * self.sample_rate)
        first = math.floor(100 / width) + 1
        return slice(first, max(first, math.ceil(highest / width)))

    @cached_property
    def power(self) -> tuple[Tensor, Tensor]:
        """|STFT|^2 in 43 ms Hann frames that overlap by half, whole frames only.

        That of `noise_bins` in every frame (F, k), and the sum over the frames (K,) of all bins.
        """
        return frame_power(self.waveform, self.short_size, self.noise_bins)

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
        mean = self.waveform.mean()  # first: a constant leaves rounding errors only
        energy = torch.linalg.vector_norm(frames(self.waveform - mean, self.frame_size), dim=1)
        return (energy.square().sum(dtype=torch.float64) / self.length).to(self.waveform.dtype)

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
        power = frame_power(padded, size, slice(0))[1]
        return power, torch.arange(len(power), device=power.device) * (self.low_rate / size)


def frames(waveforms: Tensor, size: int) -> Tensor:
    """(..., F, size) frames of (..., T) without overlap; the last one zero-padded."""
    missing = -waveforms.shape[-1] % size
    padded = F.pad(waveforms, (0, missing)) if missing else waveforms
    return padded.unflatten(-1, (-1, size))


def frame_power(waveform: Tensor, size: int, bins: slice) -> tuple[Tensor, Tensor]:
    """|STFT|^2 in Hann frames of `size` samples that overlap by half.

    That of some bins in every frame (F, k), and the sum over the frames (K,) of all bins.
    """
    total = waveform.new_zeros(size // 2 + 1)
    if len(waveform) < size:
        return total[bins].expand(0, -1), total
    window = torch.hann_window(size, device=waveform.device)
    windows = waveform.unfold(0, size, size // 2)
    # On a CPU in parts that stay in its cache.
    together = max(1, PART_SAMPLES // size) if windows.is_cpu else len(windows)
    power = waveform.new_empty(len(windows), len(total[bins]))
    for start in range(0, len(windows), together):
        spectrum = torch.fft.rfft(windows[start : start + together] * window)
        squares = torch.view_as_real(spectrum).square_()
        power[start : start + together] = squares[:, bins, 0] + squares[:, bins, 1]
        total = total + squares.sum(dim=0).sum(dim=1)
    return power, total


def autocorrelation(values: Tensor, lags: int) -> Tensor:
    """Sums of products (..., lags) of values (..., t) with themselves, from lag 0 on.

    The Fourier transform of a long row is computed as two of short ones, which stay in cache
    (W. M. Gentleman and G. Sande, AFIPS 1966): sample j = c r + s and bin k = p + r q.
    """
    least = values.shape[-1] + lags
    rows = 1 << (least.bit_length() // 2)
    columns = fft.next_fast_len(-(-least // rows), real=True)
    padded = F.pad(values, (0, rows * columns - values.shape[-1])).unflatten(-1, (rows, columns))
    twiddle = _twiddle(rows, columns, values)
    squares = torch.view_as_real(torch.fft.fft(torch.fft.rfft(padded, dim=-2) * twiddle)).square()
    half = torch.fft.ihfft(squares[..., 0] + squares[..., 1])
    half = half * twiddle[:, : columns // 2 + 1].conj()
    products = torch.fft.irfft(half, rows, dim=-2)
    # The right half of a row is the left half of the row that mirrors it, backwards.
    needed = -(-lags // columns)
    mirrored = products[..., rows - needed :, 1 : (columns + 1) // 2].flip(-2, -1)
    return torch.cat([products[..., :needed, :], mirrored], dim=-1).flatten(-2)[..., :lags]


def _twiddle(rows: int, columns: int, like: Tensor) -> Tensor:
    """exp(-2 pi i p s / (r c)) (r / 2 + 1, c): coarse steps of s times fine ones, few sines."""
    bins = torch.arange(rows // 2 + 1, device=like.device).to(like)
    turns = bins * (-2 * math.pi / (rows * columns))
    samples = torch.arange(columns, device=like.device).to(like)
    coarse, fine = (torch.outer(turns, part) for part in (samples[::TWIDDLES], samples[:TWIDDLES]))
    steps = [torch.polar(torch.ones_like(angle), angle) for angle in (coarse, fine)]
    return (steps[0][:, :, None] * steps[1][:, None]).flatten(1)[:, :columns]


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


def regrouped(blocks: Iterable[Tensor], sample_rate: int) -> Iterator[Tensor]:
    """Blocks of exactly 300 s, the last one of 30 to 330 s (or the whole of a shorter song)."""
    size, tail = BLOCK_SECONDS * sample_rate, TAIL_SECONDS * sample_rate
    parts: deque[Tensor] = deque()
    held = 0
    for block in blocks:
        parts.append(block)
        held += len(block)
        while held >= size + tail:
            yield _taken(parts, size)
            held -= size
    if held:
        yield _taken(parts, held)


def _taken(parts: deque[Tensor], count: int) -> Tensor:
    """The first `count` samples, taken off the parts; a part of that size is not copied."""
    taken = []
    while count:
        part = parts.popleft()
        taken.append(part[:count])
        if len(part) > count:
            parts.appendleft(part[count:])
        count -= len(taken[-1])
    return taken[0] if len(taken) == 1 else torch.cat(taken)
