"""The price of guards on the graph."""

from __future__ import annotations

import pytest
import torch

from apex_reward import Reward
from apex_reward.rewards.gradient import (
    _price,
    guard_price,
    guarded_gradient,
    reward_and_gradient,
)
from apex_reward.rewards.guards import Guard, Guards, noise_floor
from tests.support import golden_song, guards_of, tiny_model

RATE = 24_000


def test_the_price_by_hand() -> None:
    guard = Guard("noise", noise_floor, "dB", high=-11.0, penalty=0.5)
    values = torch.tensor([-20.0, -14.3, -12.65, -11.0, -7.7, float("-inf")])
    assert _price(guard, values).tolist() == pytest.approx([0, 0, 0.25, 0.5, 1.0, 0], abs=1e-6)
    both = Guard("loudness", noise_floor, "LUFS", low=-35.0, high=-5.0, penalty=1.0)
    assert _price(both, torch.tensor([-40.25, -20.0, -5.0])).tolist() == pytest.approx([1.5, 0, 1])


def test_only_guards_that_take_something_have_a_price() -> None:
    noise = 0.3 * torch.randn(2, 2 * RATE, generator=torch.Generator().manual_seed(0))
    song = torch.tensor(golden_song(1, RATE, 1, 2.0))
    songs = torch.cat([noise, song])
    assert guard_price(Guards.default("flag"), songs, RATE).tolist() == [0, 0, 0]
    priced = guards_of(["noise", "clipping", "duration"], "penalty", 0.5)
    found = guard_price(priced, songs, RATE)
    assert found[:2].min() > 1  # white noise lies 11 dB above the limit
    assert found[2] == 0
    halves = torch.cat([songs, torch.zeros_like(songs)], dim=1)
    lengths = [songs.shape[1]] * 3
    torch.testing.assert_close(guard_price(priced, halves, RATE, lengths), found)


def test_a_step_down_the_price_takes_the_noise_down() -> None:
    song = torch.tensor(golden_song(1, RATE, 1, 2.0))
    hiss = torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(0))
    level = torch.tensor(0.2, requires_grad=True)
    guards = guards_of(["noise"], "penalty")
    price = guard_price(guards, song + level * hiss, RATE)
    (slope,) = torch.autograd.grad(price.sum(), level)
    near = guard_price(guards, song + (level.detach() + 1e-3) * hiss, RATE)
    assert slope > 0
    # The slope is of a smoother measure than the value.
    assert 0.5 < slope.item() / ((near - price).item() / 1e-3) < 2


def test_the_guarded_gradient_is_that_of_reward_less_price() -> None:
    hiss = 0.3 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    songs = torch.cat([hiss, torch.tensor(golden_song(1, RATE, 1, 1.0))])
    model = tiny_model(3)
    free = Reward(model, "aesthetics")
    rewards, up = reward_and_gradient(free, songs, RATE)
    held = Reward(model, "aesthetics", guards=guards_of(["noise"], "penalty", 0.5))
    again, price, gradient = guarded_gradient(held, songs, RATE)
    torch.testing.assert_close(again, rewards)
    assert price[0] > 0.5
    assert price[1] == 0
    torch.testing.assert_close(gradient[1], up[1])
    pull = (gradient - up)[0]
    leaf = songs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(guard_price(held.guards, leaf, RATE).sum(), leaf)
    torch.testing.assert_close(pull, -slope[0])
    softer = guard_price(held.guards, songs + 1e-3 * pull / pull.norm(), RATE)
    assert softer[0] < price[0]
    _, none, plain = guarded_gradient(free, songs, RATE)
    assert none.tolist() == [0, 0]
    torch.testing.assert_close(plain, up)
