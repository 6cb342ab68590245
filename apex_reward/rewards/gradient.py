"""Training through the reward: its value and its waveform gradient.

A `Reward` is on the graph, with bounded memory, so a loss may simply use it; `gradient_settings`
(`apex_reward.model.packing`) trades memory for time or draws some segments of long songs. Samplers
that run with gradients through their last steps are in `apex_reward.runs.samplers`.

Shape key: B = batch of songs, C = channels, T = samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apex_reward.model.encode import Prompts
from apex_reward.rewards.guards import guard_price
from apex_reward.rewards.protocol import RewardModel
from apex_reward.rewards.reward import Reward, as_reward


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
