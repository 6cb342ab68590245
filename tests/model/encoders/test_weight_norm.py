"""The convolution with a normalised weight: torch's numbers and names, and it travels."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from apex_reward.model.encoders.weight_norm import WeightNormConv1d
from tests.support import tiny_model

RATE = 24_000


def normed_conv():
    torch.manual_seed(0)
    conv = weight_norm(nn.Conv1d(8, 8, 4, padding=2, groups=2), dim=2)
    with torch.no_grad():
        conv.parametrizations.weight.original0.uniform_(0.5, 2.0)
    return conv


def test_numbers_names_and_gradients_are_those_of_torch():
    conv = normed_conv().double()
    own = WeightNormConv1d(copy.deepcopy(conv))
    assert own.state_dict().keys() == conv.state_dict().keys()
    x = torch.randn(2, 8, 20, dtype=torch.float64)
    torch.testing.assert_close(own(x), conv(x))
    own(x).square().sum().backward()
    conv(x).square().sum().backward()
    wanted = dict(conv.named_parameters())
    for name, weight in own.named_parameters():
        assert weight.grad.abs().max() > 0
        assert torch.allclose(weight.grad, wanted[name].grad, rtol=1e-12)


def test_a_frozen_weight_follows_every_change():
    own = WeightNormConv1d(normed_conv()).requires_grad_(False)
    other = WeightNormConv1d(normed_conv())
    with torch.no_grad():
        other.parametrizations.weight.original1.add_(1)
    own.load_state_dict(other.state_dict())
    assert torch.equal(own.weight, other.weight)
    with torch.no_grad():
        own.parametrizations.weight.original0.mul_(3)
    assert torch.allclose(own.weight, 3 * other.weight)
    assert own.double().weight.dtype == torch.float64
    own.parametrizations.weight.original0 = nn.Parameter(torch.ones(1, 1, 4, dtype=torch.float64))
    assert torch.allclose(own.weight.norm(dim=(0, 1)), torch.ones(4, dtype=torch.float64))


def test_reduced_precision_computes_in_float32():
    own = WeightNormConv1d(normed_conv())
    x = torch.randn(2, 8, 20).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = own(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, own(x.float()).bfloat16())


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "travel",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_model_travels_with_its_numbers(travel):
    model = tiny_model()
    song = torch.randn(1, RATE) * 0.1
    wanted = model(song, RATE).stack()
    again = travel(model)
    assert torch.equal(again(song, RATE).stack(), wanted)
    assert again.state_dict().keys() == model.state_dict().keys()


def reward_elsewhere(model, song):
    return model.reward(song, RATE).tolist()


def test_a_model_scores_the_same_in_a_spawned_process():
    model = tiny_model()
    song = torch.randn(1, RATE) * 0.1
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(reward_elsewhere, (model, song)) == model.reward(song, RATE).tolist()


@pytest.mark.parametrize("frames", [63, 64, 65, 200])
def test_long_kernels_by_spectra_give_the_plain_convolution(frames: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv1d(12, 8, kernel_size=32, padding=16, groups=4)
    conv = weight_norm(plain, dim=2).double()
    own = WeightNormConv1d(copy.deepcopy(conv))
    x = torch.randn(2, 12, frames, dtype=torch.float64, requires_grad=True)
    wanted, found = conv(x), own(x)
    torch.testing.assert_close(found, wanted)
    seed = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, [x, *conv.parameters()], seed)
    gradients = torch.autograd.grad(found, [x, *own.parameters()], seed)
    by_name = dict(zip([n for n, _ in own.named_parameters()], gradients[1:], strict=True))
    torch.testing.assert_close(gradients[0], expected[0])
    for (name, _), wanted_gradient in zip(conv.named_parameters(), expected[1:], strict=True):
        torch.testing.assert_close(by_name[name], wanted_gradient)
    own.requires_grad_(False)
    assert torch.equal(own(x), own(x))
    torch.testing.assert_close(own(x), wanted)
    bias = own.bias.detach()[:, None]
    doubled = 2 * (own(x) - bias)
    with torch.no_grad():
        own.parametrizations.weight.original0.mul_(2)
    torch.testing.assert_close(own(x) - bias, doubled)
