"""Guards for a climb through the gradient: a price that grows before a limit is crossed.

A guard trips or not, which has no gradient; its measure mostly has one. The price begins inside a
limit, by three tenths of it, is the guard's penalty at the limit, and grows on at that rate.

Shape key: B = songs, T = samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from apex_reward.rewards.guards.guard import Guard, Guards
from apex_reward.rewards.guards.measures import (
    BATCHED,
    Measure,
    dc_offset,
    inaudible_share,
    loop_correlation,
    loudness,
    noise_floor,
)
from apex_reward.rewards.guards.songs import Songs

MARGIN = 0.3
# The others count frames or samples, which moves in jumps.
SMOOTH: tuple[Measure, ...] = (dc_offset, inaudible_share, loop_correlation, loudness, noise_floor)


def guard_price(
    guards: Guards,
    waveforms: Tensor,
    sample_rate: int,
    lengths: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """What the guards take from each song's reward, (B,) on the graph.

        loss = (guard_price(reward.guards, songs, rate) - reward(songs, rate)).mean()

    Args:
        guards: those whose action is `penalty` or `veto` and whose measure is smooth (`dc`,
            `inaudible`, `looping`, `loudness`, `noise`) count; the others hold no climb back.
        waveforms: (B, T) or (B, C, T) in [-1, 1].
        sample_rate: Hz.
        lengths: B samples; None: all of T.

    Returns:
        At least 0; a guard with limit m and penalty p adds p (1 + (excess / (0.3 |m|))), where
        that is above 0 and the excess is how far beyond the limit (below 0 inside it).
    """
    mono = waveforms.float()
    if mono.ndim == 3:
        mono = mono.mean(dim=1)
    counts = [mono.shape[1]] * len(mono) if lengths is None else [int(n) for n in lengths]
    total = mono.new_zeros(len(mono))
    with torch.no_grad():
        songs = Songs(mono, counts, sample_rate)
        values = {
            guard: _price(guard, BATCHED[guard.measure](songs))
            for guard in guards.guards
            if guard.action != "flag" and guard.measure in SMOOTH
        }
    for guard, price in values.items():
        # Far inside a limit a measure may have no slope at all (of a silent band, say).
        near = price.nonzero()[:, 0]
        if guard.measure is not None and len(near):
            part = Songs(mono[near], [counts[int(i)] for i in near], sample_rate)
            total = total.index_add(0, near, _price(guard, _sloped(guard.measure, part)).to(total))
    return total


def _price(guard: Guard, values: Tensor) -> Tensor:
    price = torch.zeros_like(values)
    for limit, sign in ((guard.high, 1.0), (guard.low, -1.0)):
        if math.isfinite(limit):
            width = MARGIN * abs(limit) or MARGIN
            # Silence measures minus infinity, which has no slope.
            known = torch.where(torch.isfinite(values), values, limit - sign * width)
            price = price + guard.penalty * torch.relu(1 + sign * (known - limit) / width)
    return price


def _sloped(measure: Measure, songs: Songs) -> Tensor:
    """(B,) the measure's values, with a slope that an optimiser can follow."""
    values = BATCHED[measure](songs)
    if measure is not noise_floor:
        return values
    # Its quantile and median hang on one frame of one bin each. The slope is that of the middle
    # half of the bins, each by the mean of its quietest fifth of the frames.
    smooth = torch.stack([_steadiness(songs, i) for i in range(len(songs.lengths))])
    return values.detach() + (smooth - smooth.detach())


def _steadiness(songs: Songs, song: int) -> Tensor:
    """Level of a song's steady part against the whole, dB, up to a constant."""
    hertz = songs.short_hertz
    bins = (hertz > 100) & (hertz < min(10_000, 0.45 * songs.sample_rate))
    power = songs.power[song, : songs.short_frames(songs.lengths[song]), bins]  # (F, K)
    fifth = max(1, len(power) // 5)
    levels = power.topk(fifth, dim=0, largest=False).values.mean(dim=0).clamp_min(1e-20).log10()
    quarter = len(levels) // 4
    return 10 * (
        levels.sort().values[quarter : len(levels) - quarter].mean() - power.mean().log10()
    )
