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
    OF_SONG,
    Measure,
    dc_offset,
    inaudible_share,
    loop_correlation,
    loudness,
    noise_floor,
)
from apex_reward.rewards.guards.songs import Song

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
    priced = [g for g in guards.guards if g.action != "flag" and g.measure in SMOOTH]
    totals = []
    for waveform, count in zip(mono, counts, strict=True):
        total = mono.new_zeros(())
        with torch.no_grad():
            song = Song(waveform[:count], sample_rate)
            near = [guard for guard in priced if _price(guard, _measured(guard, song)) > 0]
        # Far inside a limit a measure may have no slope at all (of a silent band, say).
        song = Song(waveform[:count], sample_rate)
        for guard in near:
            total = total + _price(guard, _measured(guard, song)).to(total)
        totals.append(total)
    return torch.stack(totals)


def _price(guard: Guard, values: Tensor) -> Tensor:
    price = torch.zeros_like(values)
    for limit, sign in ((guard.high, 1.0), (guard.low, -1.0)):
        if math.isfinite(limit):
            width = MARGIN * abs(limit) or MARGIN
            # Silence measures minus infinity, which has no slope.
            known = torch.where(torch.isfinite(values), values, limit - sign * width)
            price = price + guard.penalty * torch.relu(1 + sign * (known - limit) / width)
    return price


def _measured(guard: Guard, song: Song) -> Tensor:
    """() the value of a guard's measure, with a slope that an optimiser can follow."""
    assert guard.measure is not None
    value = OF_SONG[guard.measure](song)
    if guard.measure is not noise_floor or not value.requires_grad:
        return value
    # Its quantile and median hang on one frame of one bin each. The slope is that of the middle
    # half of the bins, each by the mean of its quietest fifth of the frames.
    power = song.power[0]
    quietest = power.topk(max(1, len(power) // 5), dim=0, largest=False).values
    levels = quietest.mean(dim=0).clamp_min(1e-20).log10().sort().values
    quarter = len(levels) // 4
    middle = levels[quarter : len(levels) - quarter].mean()
    smooth = 10 * (middle - power.mean().log10())
    return value.detach() + (smooth - smooth.detach())
