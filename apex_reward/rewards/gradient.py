"""Training through the reward: its value and its waveform gradient.

A `Reward` is on the graph, with bounded memory, so a loss may simply use it; `gradient_settings`
(`apex_reward.model.packing`) trades memory for time or draws some segments of long songs. Samplers
that run with gradients through their last steps are in `apex_reward.runs.samplers`.

A guard trips or not, which has no gradient; its measure mostly has one. So a guard has a price: it
begins inside a limit, by three tenths of it, is the guard's penalty at the limit, and grows on at
that rate.

Shape key: B = batch of songs, C = channels, T = samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from apex_reward.model.encode import Prompts
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
from apex_reward.rewards.protocol import RewardModel
from apex_reward.rewards.reward import Reward, as_reward

MARGIN = 0.3
# The others count frames or samples, which moves in jumps.
SMOOTH: tuple[Measure, ...] = (dc_offset, inaudible_share, loop_correlation, loudness, noise_floor)


def reward_and_gradient(
    reward: Reward | RewardModel,
    waveforms: Tensor,
    sample_rate: int,
    lengths: Tensor | None = None,
    prompts: Prompts = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rewards and their waveform gradients, for samplers that are guided rather than trained.

    The graph of `waveforms` is left alone: feed the gradient on with
    `waveforms.backward(-gradient)` to train what made them, in two bounded passes.

    Args:
        reward: a `Reward`, or a model for its default mix.
        waveforms: (B, T) or (B, C, T) in [-1, 1], zero-padded on the right, of any float dtype.

    The other arguments are those of `Reward.__call__`.

    Returns:
        Rewards (B,) and the gradient of each song's reward by its waveform, of the shape of
        `waveforms`, both off the graph. (With a mix normalised by `group`, the gradient is that of
        the batch's sum, since songs share their statistics.)
    """
    judge = as_reward(reward)
    with torch.enable_grad():
        leaf = waveforms.detach().requires_grad_()
        rewards = judge(leaf, sample_rate, lengths, prompts, groups)
        (gradient,) = torch.autograd.grad(rewards.sum(), leaf)
    return rewards.detach(), gradient


def guarded_gradient(
    reward: Reward,
    waveforms: Tensor,
    sample_rate: int,
    lengths: Tensor | None = None,
    prompts: Prompts = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reward_and_gradient`, less the price of the reward's guards (`guard_price`).

        rewards, price, gradient = guarded_gradient(reward, waveforms, rate)
        waveforms.backward(-gradient)

    Returns:
        Rewards (B,) before guards, the price (B,), and the gradient of rewards less price, of the
        shape of `waveforms`; all off the graph.
    """
    rewards, gradient = reward_and_gradient(reward, waveforms, sample_rate, lengths, prompts)
    with torch.enable_grad():
        leaf = waveforms.detach().requires_grad_()
        price = guard_price(reward.guards, leaf, sample_rate, lengths)
        if not price.requires_grad:
            return rewards, price.detach(), gradient
        (slope,) = torch.autograd.grad(price.sum(), leaf)
    return rewards, price.detach(), gradient - slope


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
