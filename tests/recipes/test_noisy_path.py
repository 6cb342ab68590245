"""Sampler steps that draw: their probabilities by hand, their spread, the path gone again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from torch import Tensor

from apex_reward.errors import UsageError
from flow_grpo_audio import NoisyPath, euler_step, noisy_scheduler


def path(noise: float = 0.5) -> NoisyPath:
    return NoisyPath(noise, torch.Generator().manual_seed(0))


def test_a_step_is_what_the_formula_says() -> None:
    taken = path(1 / 3)  # sin 30 degrees is a half
    clean, noise = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    drawn = taken.step(clean, noise, 0.25, 0.8)
    e = torch.randn(1, 2, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([[0.5 + 0.8 * math.sqrt(0.75), 1.0 - 0.8 * math.sqrt(0.75)]])
    torch.testing.assert_close(drawn, mean + 0.4 * e)
    torch.testing.assert_close(taken.means[0], mean)
    assert taken.deviations == pytest.approx([0.4])
    assert taken.log_probabilities[0].tolist() == pytest.approx([-0.25 * float(e.square().sum())])
    assert taken.step(clean, noise, 1.0, 0.0).tolist() == clean.tolist()
    assert len(taken.drawn) == 1


def test_the_noise_that_the_model_expects_is_kept() -> None:
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 100_000, generator=random)
    for share in (0.1, 0.5, 1.0):
        drawn = NoisyPath(share, random).step(torch.zeros(2, 100_000), noise, 0.4, 0.6)
        assert float(drawn.std()) == pytest.approx(0.6, abs=0.005)


def test_almost_no_chance_is_eulers_step() -> None:
    x, velocity = torch.randn(2, 3), torch.randn(2, 3)
    found = euler_step(path(1e-6), x, velocity, 0.75, 0.5)
    torch.testing.assert_close(found, x - 0.25 * velocity, atol=1e-5, rtol=0)


def test_a_path_gone_again_has_the_same_places_and_other_probabilities() -> None:
    taken, bias = path(), torch.zeros(3, requires_grad=True)

    def run(steps: NoisyPath, shift: Tensor) -> Tensor:
        x = torch.ones(4, 3)
        for level in (0.6, 0.3, 0.0):
            x = steps.step(x + shift, x, 1 - level, level)
        return x

    with torch.no_grad():
        run(taken, bias)
    heard: list[tuple[int, Tensor]] = []

    def listener(number: int, mean: Tensor, log_probability: Tensor) -> None:
        heard.append((number, log_probability.detach()))
        log_probability.sum().backward()

    run(taken.again(listener), bias)
    assert [number for number, _ in heard] == [0, 1]
    for number, found in heard:
        torch.testing.assert_close(found, taken.log_probabilities[number])
    # By hand: d/db of -((x - m) / d)^2 / 2, mean of 3 numbers, m moves by 1 - level per b.
    expected = sum(
        ((drawn - mean) / deviation**2).sum(0) * share / 3
        for drawn, mean, deviation, share in zip(
            taken.drawn, taken.means, taken.deviations, (0.4, 0.7), strict=True
        )
    )
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad, expected)

    other = taken.again()
    with torch.no_grad():
        run(other, bias + 1)
    torch.testing.assert_close(other.drawn, taken.drawn)
    assert float(other.log_probabilities[1].sum()) < float(taken.log_probabilities[1].sum())


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (FlowMatchEulerDiscreteScheduler, {}),
        (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
        (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True}),
        (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True, "shift": 3.0}),
        (EDMEulerScheduler, {}),
    ],
)
def test_schedulers_of_diffusers_step_along_a_path(
    scheduler: type, options: dict[str, Any]
) -> None:
    """With next to no chance, where the scheduler's own deterministic step goes."""
    ends = []
    for noisy in (False, True):
        own = scheduler(**options)
        own.set_timesteps(4)
        taken, x = path(1e-6), torch.full((2, 3), max(1.0, float(own.sigmas[0])))
        for time in own.timesteps:
            output = 0.1 * torch.sin(x)
            if noisy:
                with noisy_scheduler(own, taken):
                    x = own.step(output, time, x, return_dict=False)[0]
            else:
                own.scale_model_input(x, time) if scheduler is EDMEulerScheduler else None
                x = own.step(output, time, x).prev_sample
        ends.append(x)
        assert "step" not in vars(own)
    torch.testing.assert_close(ends[1], ends[0], atol=1e-3, rtol=1e-3)
    assert len(taken.drawn) == 3


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_perfect_velocity_ends_at_the_song_whatever_is_drawn(
    inverted: bool, share: float
) -> None:
    """The velocity leads straight to one song from wherever a step has led."""
    own = FlowMatchEulerDiscreteScheduler(invert_sigmas=inverted)
    own.set_timesteps(4)
    song, taken = torch.tensor([[0.5, -1.0, 2.0]]), path(share)
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(1))
    with noisy_scheduler(own, taken):
        for number, time in enumerate(own.timesteps):
            level = float(own.sigmas[number])
            output = (song - x) / (1 - level) if inverted else (x - song) / level
            x = own.step(output, time, x, return_dict=False)[0]
    torch.testing.assert_close(x, song, atol=1e-5, rtol=0)
    assert len(taken.drawn) == 3


def test_what_has_no_path_is_refused() -> None:
    with (
        pytest.raises(UsageError, match="DDIMScheduler is neither"),
        noisy_scheduler(DDIMScheduler(), path()),
    ):
        pass
    with (
        pytest.raises(UsageError, match="FlowMatchHeunDiscreteScheduler is neither"),
        noisy_scheduler(FlowMatchHeunDiscreteScheduler(), path()),
    ):
        pass
    with pytest.raises(UsageError, match="noise is 0; expected a share"):
        path(0)
