"""Gradients under every setting: the same numbers, passes counted, draws without bias."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from apex_reward import ApexReward
from apex_reward.errors import UsageError
from apex_reward.model.encode import Pieces, song_features
from apex_reward.model.packing import drawn_pieces, gradient_settings, scaled_gradient
from tests.support import tiny_model

RATE = 24_000


@pytest.fixture(scope="module")
def model() -> ApexReward:
    return tiny_model(3)


def song(model: ApexReward, segments: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(1, segments * model.config.segment_samples, generator=generator)


def gradient(model: ApexReward, waveform: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    leaf = waveform.clone().requires_grad_()
    with gradient_settings(**settings):
        value = model(leaf, RATE, batch_segments=1).stack().sum()
    (found,) = torch.autograd.grad(value, leaf)
    return value.detach(), found


@pytest.mark.parametrize(
    "settings",
    [{"graph_segments": n, "frugal": f} for n in (0, 1, 2, 9) for f in (False, True)],
    ids=str,
)
def test_all_settings_give_the_same_value_and_gradient(
    model: ApexReward, settings: dict[str, Any]
) -> None:
    waveform = song(model, 3)
    value, found = gradient(model, waveform, **settings)
    leaf = waveform.clone().requires_grad_()
    layers = model.encoder(leaf.view(3, -1)).mean(dim=0, keepdim=True)
    wanted_value = model.score_embeddings(model.pool(layers)).stack().sum()
    (wanted,) = torch.autograd.grad(wanted_value, leaf)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(value, wanted_value.detach())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(("kept", "passes"), [(None, 4), (0, 6), (1, 5), (2, 4), (3, 3)])
def test_only_segments_without_a_kept_graph_are_encoded_twice(
    model: ApexReward, monkeypatch: pytest.MonkeyPatch, kept: int | None, passes: int
) -> None:
    counted: list[int] = []
    plain = type(model.encoder).forward

    def forward(self: Any, segments: Tensor, real: Tensor | None = None) -> Tensor:
        counted.append(len(segments))
        return plain(self, segments, real)

    leaf = song(model, 3).requires_grad_()
    monkeypatch.setattr(type(model.encoder), "forward", forward)
    with gradient_settings(graph_segments=kept):
        size = 2 if kept is None else 1
        model(leaf, RATE, batch_segments=size).stack().sum().backward()
    assert sum(counted) == passes


def test_frugal_keeps_a_fraction_of_the_graph(model: ApexReward) -> None:
    def kept(frugal: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        leaf = song(model, 1).requires_grad_()
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with hooks, gradient_settings(frugal=frugal):
            features = model.encoder(leaf)
        assert features.requires_grad
        return sum(sizes.values())

    assert kept(frugal=True) < 0.6 * kept(frugal=False)


class OperatorCounter(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "addmm":
            name = "narrowing" if args[1].shape[1] > args[2].shape[1] else "other products"
        self.runs[name] += 1
        return func(*args, **(kwargs or {}))


def test_frugal_runs_attention_and_narrowing_products_once(model: ApexReward) -> None:
    leaf, layers = song(model, 1).requires_grad_(), model.config.layers[-1]
    with OperatorCounter() as counter, gradient_settings(frugal=True):
        model.encoder(leaf).sum().backward()
    attention = [runs for name, runs in counter.runs.items()
                 if name.startswith("_scaled_dot_product") and "backward" not in name]  # fmt: skip
    assert attention == [layers]
    assert counter.runs["narrowing"] == layers
    # Queries, keys, values, attention's output and the wide product: twice.
    assert counter.runs["other products"] >= 2 * 5 * layers


def test_drawn_segments_are_unbiased_with_the_stated_variance(model: ApexReward) -> None:
    """Over all draws of 1 of 3 segments the mean is the whole gradient, exactly."""
    waveform = song(model, 3)
    value, whole = gradient(model, waveform)
    seen: dict[int, Tensor] = {}
    torch.manual_seed(0)
    for _ in range(40):
        drawn_value, found = gradient(model, waveform, segments=1)
        torch.testing.assert_close(drawn_value, value)
        parts = found.view(3, -1)
        (number,) = parts.abs().sum(dim=1).nonzero()[:, 0].tolist()
        seen[number] = found
        if len(seen) == 3:
            break
    draws = torch.stack([seen[number] for number in range(3)])
    near = {"rtol": 1e-4, "atol": 1e-6 * float(whole.abs().max())}
    torch.testing.assert_close(draws.mean(dim=0), whole, **near)
    variance = (draws - whole).square().mean(dim=0).sum()
    torch.testing.assert_close(variance, (3 / 1 - 1) * whole.square().sum(), rtol=1e-4, atol=0)
    assert torch.equal(gradient(model, waveform, segments=3)[1], whole)


def test_every_song_draws_its_own_pieces_all_alike() -> None:
    torch.manual_seed(0)
    numbers = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    counts = torch.zeros(7)
    for _ in range(2000):
        chosen, scale = drawn_pieces(numbers, 2)
        assert torch.bincount(numbers[chosen]).tolist() == [2, 1, 2]
        counts += chosen
    assert scale.tolist() == [2, 2, 2, 2, 1, 1, 1]
    assert counts[:4].tolist() == pytest.approx([1000] * 4, abs=100)


def test_a_scaled_gradient_leaves_the_value() -> None:
    x = torch.tensor([[1.5], [2.5]], requires_grad=True)
    y = scaled_gradient(x, torch.tensor([3.0, 1.0]))
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[3.0], [1.0]]


class Whole(Pieces):
    """Encodes whole songs and counts how often."""

    name, sample_rate = "whole", RATE

    def __init__(self) -> None:
        self.passes = 0

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        self.passes += 1
        return samples.square().mean(dim=1, keepdim=True)

    def fingerprint(self) -> str:
        return "whole"


@pytest.mark.parametrize(("songs", "kept", "passes"), [(1, None, 1), (3, None, 5), (3, 3, 3)])
def test_a_whole_song_is_encoded_once(songs: int, kept: int | None, passes: int) -> None:
    encoder, leaf = Whole(), torch.rand(songs, 2400).requires_grad_()
    with gradient_settings(graph_segments=kept):
        (found,) = song_features([encoder], leaf, RATE)
    found.sum().backward()
    assert encoder.passes == passes
    torch.testing.assert_close(leaf.grad, 2 * leaf.detach() / 2400)


def test_bad_settings_and_an_empty_batch_say_so() -> None:
    with (
        pytest.raises(UsageError, match="graph_segments is -1; expected 0 or more"),
        gradient_settings(graph_segments=-1),
    ):
        pass
    with (
        pytest.raises(UsageError, match="segments is 0; expected 1 or more"),
        gradient_settings(segments=0),
    ):
        pass
    with pytest.raises(UsageError, match="no songs"):
        song_features([Whole()], torch.zeros(0, 2400), RATE)


def test_transforms_and_second_derivatives_need_the_graph(model: ApexReward) -> None:
    waveform = song(model, 2)

    def value(x: Tensor) -> Tensor:
        return model(x, RATE, batch_segments=1).stack().sum()

    with pytest.raises(UsageError, match=r"no torch\.func transform: .*graph_segments=N"):
        torch.func.grad(value)(waveform)
    leaf = waveform.clone().requires_grad_()
    with pytest.raises(UsageError, match=r"no second derivative .*graph_segments=N"):
        torch.autograd.grad(value(leaf), leaf, create_graph=True)
    _, plain = gradient(model, waveform)
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with gradient_settings(graph_segments=2), math:
        torch.testing.assert_close(torch.func.grad(value)(waveform), plain, rtol=1e-4, atol=1e-6)
        (first,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
    # Along d, the second derivative of value gives half the slope of |gradient|^2.
    step = 1e-4 * second.sign()  # uphill, so that no sum cancels
    _, up = gradient(model, waveform + step)
    _, down = gradient(model, waveform - step)
    slope = (up.square().sum() - down.square().sum()) / 2
    assert float((second * step).sum()) == pytest.approx(float(slope), rel=0.05)
