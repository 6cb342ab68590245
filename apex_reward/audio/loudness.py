"""Loudness by ITU-R BS.1770-4, batched and differentiable; and gain to a target loudness.

Shape key: B = batch of songs, C = channels, T = samples, N = gating blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apex_reward.errors import UsageError

BLOCK_SECONDS = 0.4
STEP_SECONDS = 0.1
PART_SECONDS = 30.0
ABSOLUTE_GATE = -70.0
RELATIVE_GATE = -10.0
SHORT_TERM_SECONDS = 3.0
RANGE_GATE = -20.0
RANGE_SHARES = (0.10, 0.95)

_OFFSET = -0.691
# The impulse response of K-weighting has fallen below 1e-50 after this time.
_TAIL_SECONDS = 0.5
_STATES = 4
_FILTER_BLOCK = 24  # samples
_FILTER_GROUP = 16  # blocks
# Left, right, centre, (low-frequency effects,) left and right surround: BS.1770-4, table 3.
_CHANNEL_WEIGHTS = {5: (1.0, 1.0, 1.0, 1.41, 1.41), 6: (1.0, 1.0, 1.0, 0.0, 1.41, 1.41)}

Lengths = Tensor | Sequence[int] | None


def integrated_loudness(waveforms: Tensor, sample_rate: int, lengths: Lengths = None) -> Tensor:
    """Gated loudness of each song, ITU-R BS.1770-4 equations 1 to 7.

    K-weighting has the coefficients of the Recommendation at 48 kHz and the same analogue filters
    at other rates. The gates choose blocks; the choice is held fixed in the
    backward pass. A song shorter than a gating block (0.4 s) is measured as one block.

    Args:
        waveforms: (B, T) mono or (B, C, T) with C <= 6 (five and six channels are taken as 5.0 and
            5.1 in the order L, R, C, (LFE,) Ls, Rs), zero-padded on the right.
        sample_rate: Hz.
        lengths: (B,) real samples of each song, a tensor or integers; None: all of T.

    Returns:
        (B,) LUFS on the graph; minus infinity (with zero gradient) where every block is gated out,
        that is for silence.

    Raises:
        UsageError: a rate below 4000 Hz.
    """
    weighted, ends = _weighted(waveforms, sample_rate, lengths)
    return _gated(*_block_energies(weighted, ends, sample_rate))


def loudness_and_range(waveforms: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """`integrated_loudness` (B,) in LUFS and the loudness range (B,) in LU, EBU Tech 3342.

    The range lies between the 10th and the 95th percentile of the loudness of windows of 3 s, every
    0.1 s, above -70 LUFS and above 20 LU below their mean power. It is 0 for a song below 3 s, and
    for silence. Arguments and errors as in `integrated_loudness`.
    """
    weighted, ends = _weighted(waveforms, sample_rate, None)
    integrated = _gated(*_block_energies(weighted, ends, sample_rate))
    energies, valid = _block_energies(weighted, ends, sample_rate, SHORT_TERM_SECONDS)
    kept = valid & (energies > _power(ABSOLUTE_GATE))
    threshold = _masked_mean(energies, kept) * 10 ** (RANGE_GATE / 10)
    kept = kept & (energies > threshold.unsqueeze(1))
    ranges = []
    for song, mask in zip(energies, kept, strict=True):
        levels = 10 * torch.log10(song[mask].sort().values)
        # Ranks as FFmpeg's ebur128 has them.
        low, high = (max(0, int(share * len(levels) + 0.5) - 1) for share in RANGE_SHARES)
        ranges.append(levels[high] - levels[low] if len(levels) else song.new_zeros(()))
    return integrated, torch.stack(ranges)


def _weighted(waveforms: Tensor, sample_rate: int, lengths: Lengths) -> tuple[Tensor, list[int]]:
    """The K-weighted channels (B, C, T), zero beyond the songs' lengths, and those."""
    ends = _ends(waveforms, sample_rate, lengths)
    channels = waveforms.unsqueeze(1) if waveforms.ndim == 2 else waveforms
    weighted = k_weighted(channels, sample_rate)
    if min(ends) < weighted.shape[2]:
        beyond = torch.arange(weighted.shape[2], device=weighted.device)
        beyond = beyond >= torch.tensor(ends, device=weighted.device)[:, None]
        weighted = weighted.masked_fill(beyond[:, None], 0.0)
    return weighted, ends


def loudness_of_blocks(blocks: Iterable[Tensor], sample_rate: int) -> Tensor:
    """Integrated loudness of a mono song that comes in blocks (n,), () LUFS, in bounded memory.

    Equal to `integrated_loudness` of the whole song to about 1e-4 LU: each block is filtered behind
    the half second before it, which K-weighting has then forgotten.
    """
    step = round(STEP_SECONDS * sample_rate)
    overlap = round(BLOCK_SECONDS * sample_rate) - step  # gating blocks reach over into the next
    settle = round(_TAIL_SECONDS * sample_rate)
    energies: list[Tensor] = []
    weighted = before = torch.zeros(0)
    for part in _parts(blocks, round(PART_SECONDS * sample_rate)):
        joint = torch.cat([before.to(part.device), part])
        filtered = k_weighted(joint, sample_rate)[len(before) :]
        before = joint[-settle:].clone()
        weighted = torch.cat([weighted.to(part.device), filtered])
        ready = (len(weighted) - overlap) // step * step
        if ready > 0:
            end = ready + overlap
            energies.append(_block_energies(weighted[None, None, :end], [end], sample_rate)[0][0])
            weighted = weighted[ready:].clone()
    if not energies:  # shorter than one gating block
        energies = [weighted.square().mean()[None]]
    joined = torch.cat(energies)[None]
    return _gated(joined, torch.ones_like(joined, dtype=torch.bool))[0]


def _parts(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Blocks in parts of at most `size` samples: filtering one takes several times its memory."""
    for block in blocks:
        yield from block.split(size)


def _gated(energies: Tensor, valid: Tensor) -> Tensor:
    """Loudness (B,) of gating blocks' energies (B, N), by the absolute and the relative gate."""
    kept = valid & (energies > _power(ABSOLUTE_GATE))
    threshold = _masked_mean(energies.detach(), kept) * 10 ** (RELATIVE_GATE / 10)
    kept = kept & (energies > threshold.unsqueeze(1))
    sounds = kept.any(dim=1)
    energy = torch.where(sounds, _masked_mean(energies, kept), 1.0)
    return torch.where(sounds, _OFFSET + 10 * torch.log10(energy), -math.inf)


def loudness_gain(
    waveforms: Tensor, sample_rate: int, target: float, lengths: Lengths = None
) -> Tensor:
    """The factors (B,) that bring songs to a target loudness in LUFS; 1 for silence.

    Differentiable: what follows is invariant to gain, and its waveform gradient has no component
    along the waveform, so a generator cannot raise the reward by playing louder. Peaks above full
    scale are not limited. The other arguments are those of `integrated_loudness`.
    """
    measured = integrated_loudness(waveforms, sample_rate, lengths)
    sounds = torch.isfinite(measured)
    return 10 ** ((target - torch.where(sounds, measured, target)) / 20)


def k_weighted(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Waveforms (..., T) after the two K-weighting filters, as a product of matrices.

    Both recursive filters are one linear system of four states. A short block of samples gives its
    output by the impulse response, the four states at its end, and the four at its start give the
    rest of its output. No transform, no recursion over samples; differentiable.
    """
    real = waveforms if waveforms.dtype == torch.float64 else waveforms.float()
    size, group = _FILTER_BLOCK, _FILTER_GROUP
    system = [
        torch.from_numpy(matrix).to(real.device, real.dtype) for matrix in _k_system(sample_rate)
    ]
    through, start, inner, outer, later, *powers = system
    samples = real.shape[-1]
    blocks = -(-samples // size)
    groups = -(-blocks // group)
    # Reduced precision would lose the states: keep autocast out of it.
    with torch.autocast(real.device.type, enabled=False):
        padded = F.pad(real, (0, blocks * size - samples)) if samples % size else real
        rows = padded.reshape(-1, size)
        both = rows @ through  # what a block gives, and its states at its end
        ends = both[:, size:].reshape(-1, blocks, _STATES)
        ends = F.pad(ends, (0, 0, 0, groups * group - blocks)).flatten(1)
        ends = ends.reshape(-1, groups, group * _STATES)
        carried = F.pad(ends @ outer, (0, 0, 1, 0))[:, :groups]  # states at a group's start
        for index, power in enumerate(powers):
            if (shift := 1 << index) < groups:
                carried = carried + F.pad(carried[:, :-shift] @ power, (0, 0, shift, 0))
        states = (ends @ inner + carried @ later).reshape(len(ends), -1, _STATES)
        states = states[:, :blocks].reshape(-1, _STATES)
        weighted = torch.addmm(both[:, :size], states, start)
    return weighted.reshape(*real.shape[:-1], -1)[..., :samples]


@lru_cache(maxsize=8)
def _k_system(sample_rate: int) -> list[NDArray[np.float64]]:
    """The matrices of `k_weighted`, with rows of samples on the left.

    No tensors: these serve every mode and device. The states are scaled so that white noise gives
    each of them its own power: then float32 does.
    """
    first, second = (_state_space(*section) for section in k_weighting(sample_rate))
    a = np.block([[first[0], np.zeros((2, 2))], [second[1] @ first[2], second[0]]])
    b = np.concatenate([first[1], second[1] @ first[3]])
    c = np.concatenate([second[3] @ first[2], second[2]], axis=1)
    past = [b[:, 0]]  # the states long after one sample
    while len(past) < _TAIL_SECONDS * sample_rate:
        past.append(a @ past[-1])
    scale = np.transpose(np.linalg.qr(np.stack(past)).R)
    undo = np.linalg.inv(scale)
    a, b, c = undo @ a @ scale, undo @ b, c @ scale

    size, group = _FILTER_BLOCK, _FILTER_GROUP
    powers = [np.linalg.matrix_power(a, n) for n in range(size + 1)]
    response = [float((second[3] @ first[3])[0, 0]), *((c @ p @ b)[0, 0] for p in powers)]
    through = np.zeros((size, size + _STATES))
    for n in range(size):
        through[n, n:size] = response[: size - n]
        through[n, size:] = (powers[size - 1 - n] @ b)[:, 0]
    start = np.stack([(c @ power)[0] for power in powers[:size]], axis=1)
    steps = [np.linalg.matrix_power(powers[size].T, n) for n in range(group + 1)]
    nothing = np.zeros((_STATES, _STATES))
    inner = np.block([[steps[n - m - 1] if m < n else nothing for n in range(group)]
                      for m in range(group)])  # fmt: skip
    outer = np.concatenate(steps[group - 1 :: -1])
    later, doubled = np.concatenate(steps[:group], axis=1), [steps[group]]
    while np.abs(doubled[-1]).max() > 1e-20:
        doubled.append(doubled[-1] @ doubled[-1])
    return [through, start, inner, outer, later, *doubled]


def _state_space(
    numerator: tuple[float, ...], denominator: tuple[float, ...]
) -> tuple[NDArray[np.float64], ...]:
    """A, B, C and D of a filter of second order in controller form."""
    (b0, b1, b2), (_, a1, a2) = numerator, denominator
    output = [[b1 - a1 * b0, b2 - a2 * b0]]
    return tuple(map(np.array, ([[-a1, -a2], [1.0, 0.0]], [[1.0], [0.0]], output, [[b0]])))


def k_weighting(sample_rate: int) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """(numerator, denominator) of the shelf and the high-pass, in powers of z^-1.

    At 48 kHz these are the tables of BS.1770-4; elsewhere the same analogue filters by the bilinear
    transform (B. De Man, "Evaluation of implementations of the EBU R128 loudness measurement",
    AES 145, 2018), with the high-pass's gain at 48 kHz kept.
    """
    gain = 10 ** (3.999843853973347 / 20)
    middle = gain**0.4996667741545416
    warped, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    scale = 1 + warped / q + warped**2
    shelf = (
        (gain + middle * warped / q + warped**2) / scale,
        2 * (warped**2 - gain) / scale,
        (gain - middle * warped / q + warped**2) / scale,
    )
    shelf_denominator = (1.0, 2 * (warped**2 - 1) / scale, (1 - warped / q + warped**2) / scale)

    warped, scale = _high_pass(sample_rate)
    level = _high_pass(48_000)[1] / scale
    denominator = (
        1.0,
        2 * (warped**2 - 1) / scale,
        (1 - warped / _HIGH_PASS_Q + warped**2) / scale,
    )
    return [(shelf, shelf_denominator), ((level, -2 * level, level), denominator)]


_HIGH_PASS_Q = 0.5003270373238773


def _high_pass(sample_rate: int) -> tuple[float, float]:
    warped = math.tan(math.pi * 38.13547087602444 / sample_rate)
    return warped, 1 + warped / _HIGH_PASS_Q + warped**2


def _ends(waveforms: Tensor, sample_rate: int, lengths: Lengths) -> list[int]:
    if sample_rate < 4000:
        raise UsageError(f"sample_rate is {sample_rate} Hz; loudness needs at least 4000 Hz")
    if lengths is None:
        return [waveforms.shape[-1]] * len(waveforms)
    return [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]


def _block_energies(
    weighted: Tensor, ends: list[int], sample_rate: int, seconds: float = BLOCK_SECONDS
) -> tuple[Tensor, Tensor]:
    """Power (B, N) of the gating blocks of channels (B, C, T), and which of them lie in the song.

    That of all channels together. A song shorter than a block has its mean power in the first one.
    """
    block, step = round(seconds * sample_rate), round(STEP_SECONDS * sample_rate)
    lengths = torch.tensor(ends, device=weighted.device)
    if weighted.shape[2] < block:
        weighted = F.pad(weighted, (0, block - weighted.shape[2]))
    # Where a block is a few whole steps, every sample is summed once.
    size = step if block % step == 0 else block
    parts = torch.linalg.vector_norm(weighted.unfold(2, size, step), dim=3).square()
    count = weighted.shape[1]
    weights = parts.new_tensor(_CHANNEL_WEIGHTS.get(count, (1.0,) * count))
    energies = torch.einsum("c,bcn->bn", weights, parts).unfold(1, block // size, 1).sum(dim=2)
    counts = torch.where(lengths < block, lengths, block).unsqueeze(1)
    stops = torch.arange(energies.shape[1], device=parts.device) * step + block
    valid = stops <= lengths.clamp(min=block).unsqueeze(1)
    return energies / counts, valid


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _power(lufs: float) -> float:
    return 10 ** ((lufs - _OFFSET) / 10)
