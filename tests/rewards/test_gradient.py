"""Waveform gradients, truncated samplers; autocast, gradient accumulation and DDP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from apex_reward import ApexReward, RewardMix
from apex_reward.errors import UsageError
from apex_reward.rewards.gradient import reward_and_gradient
from apex_reward.rewards.reward import Reward
from apex_reward.runs.samplers import LastSteps, run_sampler
from tests.support import golden_song, tiny_model

MIX = "musicality=1,score_likes=-0.3"


@pytest.fixture(scope="module")
def model() -> ApexReward:
    return tiny_model(3)


def songs(count: int = 2, seconds: float = 1.5) -> Tensor:
    return torch.stack([torch.tensor(golden_song(i, 24_000, 1, seconds)[0]) for i in range(count)])


def test_value_and_gradient_are_those_of_the_models_reward(model: ApexReward) -> None:
    waveforms = songs().requires_grad_()
    model.reward(waveforms, 24_000, mix=MIX).sum().backward()
    with torch.no_grad():
        values, gradient = reward_and_gradient(Reward(model, MIX), waveforms.detach(), 24_000)
    torch.testing.assert_close(gradient, waveforms.grad)
    torch.testing.assert_close(values, model.reward(waveforms, 24_000, mix=MIX).detach())
    assert not values.requires_grad
    assert gradient.abs().sum() > 0


def test_the_gradient_goes_uphill(model: ApexReward) -> None:
    waveforms = songs()
    values, gradient = reward_and_gradient(Reward(model, MIX), waveforms, 24_000)
    step = 1e-3 * gradient / gradient.norm(dim=1, keepdim=True)
    rise = model.reward(waveforms + step, 24_000, mix=MIX).detach() - values
    expected = 1e-3 * gradient.norm(dim=1)
    torch.testing.assert_close(rise, expected, rtol=0.1, atol=2e-6)


@pytest.mark.parametrize("normalization", ["range", "zscore", "group", "none"])
def test_every_normalisation_reaches_the_waveform(model: ApexReward, normalization: str) -> None:
    waveforms = songs(3).requires_grad_()
    mix = RewardMix.parse("aesthetics", normalization)
    if normalization == "zscore":
        mix = mix.with_reference(model(songs(4), 24_000))
    rewards = model.reward(waveforms, 24_000, mix=mix)
    (rewards * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    assert waveforms.grad is not None
    assert (waveforms.grad.abs().sum(1) > 0).all()


def test_loudness_takes_the_gain_out_of_the_gradient(model: ApexReward) -> None:
    waveforms = songs()
    quiet, _ = reward_and_gradient(Reward(model, MIX, loudness=-14), 0.1 * waveforms, 24_000)
    values, gradient = reward_and_gradient(Reward(model, MIX, loudness=-14), waveforms, 24_000)
    torch.testing.assert_close(values, quiet, atol=1e-5, rtol=0)
    _, raw = reward_and_gradient(Reward(model, MIX), waveforms, 24_000)

    def along(gradient: Tensor) -> float:
        cosine = torch.cosine_similarity(gradient.double(), waveforms.double(), dim=1)
        return float(cosine.abs().max())

    assert along(gradient) < 1e-7
    assert along(raw) > 1e-5


class Walk(nn.Module):
    """A sampler with one weight: each step multiplies by it."""

    def __init__(self, weight: float = 0.9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls: list[int] = []

    def step(self, state: Tensor, index: int) -> Tensor:
        self.calls.append(index)
        return state * self.weight


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(("steps", "last"), [(5, 2), (5, 5), (5, None), (1, 1)])
def test_gradients_of_the_last_steps_by_hand(steps: int, last: int | None, recompute: bool) -> None:
    walk, state = Walk(), torch.tensor(2.0, requires_grad=True)
    end = run_sampler(walk.step, state, steps, last, recompute)
    end.backward()
    assert end.item() == pytest.approx(2 * 0.9**steps)
    # d/dw of w^last times the constant that the earlier steps left.
    count = last or steps
    assert walk.weight.grad is not None
    assert walk.weight.grad.item() == pytest.approx(2 * 0.9 ** (steps - 1) * count, rel=1e-6)
    if count == steps:
        assert state.grad is not None
        assert state.grad.item() == pytest.approx(0.9**steps)
    else:
        assert state.grad is None
    assert walk.calls[:steps] == list(range(steps))


def test_recomputing_repeats_the_random_numbers() -> None:
    def run(recompute: bool) -> Tensor:
        torch.manual_seed(5)
        state = torch.ones(4, requires_grad=True)
        run_sampler(
            lambda s, _: s * (1 + torch.rand(4)), state, 3, recompute=recompute
        ).sum().backward()
        assert state.grad is not None
        return state.grad

    assert torch.equal(run(True), run(False))


def test_last_steps_of_a_sampler_that_is_not_ours() -> None:
    def foreign(walk: Walk, callback: Any) -> Tensor:
        state = torch.tensor(2.0)
        for index in range(5):
            state = walk.step(state, index)
            callback(index, 0, state)
        return state

    walk = Walk()
    with LastSteps(5, 2) as callback:
        end = foreign(walk, callback)
    end.backward()
    assert walk.weight.grad is not None
    assert walk.weight.grad.item() == pytest.approx(2 * 0.9**4 * 2, rel=1e-6)
    assert torch.is_grad_enabled()
    with LastSteps(5, 5) as callback:
        assert foreign(walk, callback).requires_grad
    with torch.no_grad(), LastSteps(5, 2) as callback:
        assert not foreign(walk, callback).requires_grad
    with pytest.raises(RuntimeError, match="stop"), LastSteps(3, 1):
        raise RuntimeError("stop")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("steps", "last"), [(3, 4), (3, 0), (0, None)])
def test_impossible_steps_are_named(steps: int, last: int | None) -> None:
    with pytest.raises(UsageError, match=r"expected 1 <= last <= steps"):
        run_sampler(lambda s, _: s, torch.zeros(1), steps, last)


class Generator(nn.Module):
    """Songs from noise: four steps of a small network, the last two on the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 4, 9, padding=4), nn.Tanh(), nn.Conv1d(4, 1, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return run_sampler(
            lambda state, _: 0.5 * state + 0.5 * self.net(state[:, None])[:, 0],
            noise, 4, last=2, recompute=True,
        ).tanh()  # fmt: skip


def generator_and_noise() -> tuple[Generator, Tensor]:
    torch.manual_seed(1)
    return Generator(), 0.3 * torch.randn(4, 24_000)


def gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def loss_of(model: ApexReward, waveforms: Tensor) -> Tensor:
    return -Reward(model, MIX, loudness=-20.0)(waveforms, 24_000).mean()


def whole_batch(model: ApexReward) -> Tensor:
    generator, noise = generator_and_noise()
    loss_of(model, generator(noise)).backward()
    return gradients(generator)


def test_accumulating_over_micro_batches_is_the_whole_batch(model: ApexReward) -> None:
    generator, noise = generator_and_noise()
    for part in noise.split(1):
        (loss_of(model, generator(part)) / 4).backward()
    torch.testing.assert_close(gradients(generator), whole_batch(model), rtol=1e-3, atol=3e-6)


def test_two_bounded_passes_are_one_backward(model: ApexReward) -> None:
    generator, noise = generator_and_noise()
    waveforms = generator(noise)
    _, gradient = reward_and_gradient(Reward(model, MIX, loudness=-20.0), waveforms, 24_000)
    waveforms.backward(-gradient / len(noise))
    torch.testing.assert_close(gradients(generator), whole_batch(model), rtol=1e-3, atol=3e-6)


def test_under_autocast_gradients_keep_their_direction(model: ApexReward) -> None:
    generator, noise = generator_and_noise()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, generator(noise))
    loss.backward()
    exact, rough = whole_batch(model), gradients(generator)
    assert loss.dtype == torch.float32
    assert torch.isfinite(rough).all()
    assert torch.cosine_similarity(exact, rough, dim=0) > 0.95


def test_the_reward_model_is_left_alone(model: ApexReward) -> None:
    before = [p.clone() for p in model.encoder.parameters()]
    whole_batch(model)
    assert all(p.grad is None for p in model.encoder.parameters())
    for old, new in zip(before, model.encoder.parameters(), strict=True):
        assert torch.equal(old, new)


def _ddp_rank(rank: int, file: str, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    generator, noise = generator_and_noise()
    wrapped = DistributedDataParallel(generator)
    for part in noise[2 * rank : 2 * rank + 2].split(1)[:1]:  # the first micro-batch unsynchronised
        with wrapped.no_sync():
            (loss_of(tiny_model(3), wrapped(part)) / 2).backward()
    (loss_of(tiny_model(3), wrapped(noise[2 * rank + 1 : 2 * rank + 2])) / 2).backward()
    results[rank] = gradients(generator)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ddp_with_accumulation_gives_the_gradient_of_the_whole_batch(
    model: ApexReward, tmp_path: Any
) -> None:
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_ddp_rank, (str(tmp_path / "store"), results), nprocs=2)
        first, second = results[0], results[1]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole_batch(model), rtol=1e-3, atol=3e-6)
