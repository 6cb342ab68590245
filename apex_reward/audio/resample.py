"""Differentiable resampling with the windowed sinc of torchaudio.

Shape key: T = samples; any leading dimensions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward.errors import AudioError, expect

# The published pipeline's filter: torchaudio.functional.resample with its defaults.
FILTER_WIDTH = 6
ROLLOFF = 0.99
# A rate that shares only a small divisor with the target needs a filter per output phase; beyond
# this many taps (1 GB while it is computed) the file is better converted once by its owner.
MAX_KERNEL_ELEMENTS = 1 << 25


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample the last dimension with a Hann-windowed sinc (width 6, rolloff 0.99).

    A polyphase filter bank as one strided convolution: x(t) = sum_i x[i] sinc(pi c (i / from - t))
    w(...), with the cut-off c at ROLLOFF times the lower rate and a Hann window over FILTER_WIDTH
    zero crossings (Julius O. Smith, "Digital Audio Resampling"). Output phases repeat every
    `to / gcd` samples, hence one filter per phase.

    Args:
        waveform: float tensor (..., T); gradients flow through. Half precision is computed in
            float32.
        from_rate, to_rate: sample rates in Hz, whole numbers.

    Returns:
        (..., ceil(T * to_rate / from_rate)), exactly that length for any T.

    Raises:
        UsageError: a rate that is no positive whole number of Hz.
        AudioError: rates with too small a common divisor for a filter of sensible size.
    """
    _check_rates(from_rate, to_rate)
    waveform = waveform.to(torch.promote_types(waveform.dtype, torch.float32))
    if from_rate == to_rate:
        return waveform
    divisor = math.gcd(from_rate, to_rate)
    step, phases = from_rate // divisor, to_rate // divisor
    width, kernel = sinc_kernel(step, phases, waveform)
    length = waveform.shape[-1]
    rows = F.pad(waveform.reshape(-1, 1, length), (width, width + step))
    output = F.conv1d(rows, kernel[:, None], stride=step)
    flat = output.transpose(1, 2).reshape(rows.shape[0], -1)
    flat = flat[:, : resampled_length(length, from_rate, to_rate)]
    return flat.reshape(*waveform.shape[:-1], flat.shape[-1])


class BlockResampler:
    """`resample` for a song that comes in blocks; the blocks' outputs, joined, equal it.

    Each block is resampled with the samples around it that the filter reaches, and cut where input
    and output samples coincide, so that the filter's phases are the same.

    Args:
        from_rate, to_rate: as in `resample`.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        _check_rates(from_rate, to_rate)
        self.rates = from_rate, to_rate
        divisor = math.gcd(from_rate, to_rate)
        self._step, self._phases = from_rate // divisor, to_rate // divisor
        reach = math.ceil(FILTER_WIDTH * self._step / (min(self._step, self._phases) * ROLLOFF)) + 2
        self._context = -(-reach // self._step) * self._step
        self._kept: Tensor | None = None
        self._lead = 0  # samples of `_kept` whose output is out already

    def push(self, block: Tensor, last: bool) -> Tensor:
        """The output (m,) that a further block (n,) settles; all that is left with the last."""
        if self._kept is None and last:
            return resample(block, *self.rates)
        kept = block if self._kept is None else torch.cat([self._kept, block])
        ready = len(kept) if last else (len(kept) - self._context) // self._step * self._step
        if ready <= self._lead:
            self._kept = kept
            return block.new_empty(0)
        output = resample(kept, *self.rates)
        end = len(output) if last else ready // self._step * self._phases
        found = output[self._lead // self._step * self._phases : end]
        drop = max(0, ready - self._context)
        self._kept, self._lead = kept[drop:], ready - drop
        return found


def resampled_length(length: int, from_rate: int, to_rate: int) -> int:
    """Samples after resampling: the ceiling of length * to_rate / from_rate.

    >>> resampled_length(44_100, 44_100, 24_000), resampled_length(1, 44_100, 24_000)
    (24000, 1)
    """
    return -(-length * to_rate // from_rate)


def sinc_kernel(step: int, phases: int, like: Tensor) -> tuple[int, Tensor]:
    """Samples before an output's own one, and the filters (phases, 2 width + step) from there on.

    In the waveform's precision, as torchaudio has them: in float32 their phases are off by 1e-5,
    and the published scores were made with those.
    """
    cutoff = min(step, phases) * ROLLOFF
    width = math.ceil(FILTER_WIDTH * step / cutoff)
    dtype, device = like.dtype, like.device
    taps = torch.arange(-width, width + step, dtype=dtype, device=device) / step
    offsets = torch.arange(phases, dtype=dtype, device=device) / phases
    t = ((taps - offsets[:, None]) * cutoff).clamp(-FILTER_WIDTH, FILTER_WIDTH)
    window = torch.cos(t * math.pi / FILTER_WIDTH / 2).square()
    return width, torch.sinc(t) * window * (cutoff / step)


def _check_rates(from_rate: int, to_rate: int) -> None:
    for rate in (from_rate, to_rate):
        whole = not isinstance(rate, bool) and int(rate) == rate and rate > 0
        expect(whole, "sample rate", rate, "a positive whole number of Hz")
    divisor = math.gcd(from_rate, to_rate)
    if (from_rate // divisor + 14) * (to_rate // divisor) > MAX_KERNEL_ELEMENTS:
        raise AudioError(
            f"a sample rate of {from_rate} Hz needs one filter for each of {to_rate // divisor} "
            f"output phases to reach {to_rate} Hz; convert the file to a common rate "
            "such as 44100 Hz first"
        )
