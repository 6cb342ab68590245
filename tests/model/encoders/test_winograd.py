"""3x3 convolutions by Winograd's algorithm: the values and gradients of torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apex_reward.model.encoders import products as winograd
from apex_reward.model.encoders.muq import Subsampling
from apex_reward.model.encoders.products import conv3x3, transformed


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "TILES", 3)  # several pieces, the last one smaller


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 11), (8, 30)])
def test_float32_is_as_exact_as_the_direct_convolution(size: tuple[int, int]) -> None:
    generator = torch.manual_seed(0)
    x = torch.randn(2, 256, *size, generator=generator).relu()
    weight = torch.randn(128, 256, 3, 3, generator=generator) / 48
    bias = torch.randn(128, generator=generator)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = conv3x3(x, weight, bias)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 1e-5
    assert torch.equal(found, conv3x3(x, weight, bias, transformed(weight)))
    assert not torch.equal(found, F.conv2d(x, weight, bias, padding=1))  # the other algorithm ran


@pytest.mark.usefixtures("always")
def test_gradients_are_exact_twice() -> None:
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    assert torch.autograd.gradcheck(conv3x3, (x, weight, bias))
    assert torch.autograd.gradgradcheck(conv3x3, (x, weight, bias))


def test_reduced_types_and_few_channels_take_torch_s_convolution() -> None:
    few, many = torch.randn(1, 8, 6, 6), torch.randn(1, 128, 6, 6).bfloat16()
    for x in (few, many):
        weight = torch.randn(x.shape[1], x.shape[1], 3, 3, dtype=x.dtype)
        bias = weight[0, :, 0, 0]
        assert torch.equal(conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1))


@pytest.mark.usefixtures("always")
def test_the_subsampling_is_convolutions_behind_which_norms_stand() -> None:
    torch.manual_seed(0)
    module = Subsampling(4, 6).double().eval()
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        for tensor in (norm.running_var, norm.weight):
            tensor.data.uniform_(0.5, 2.0)
        for tensor in (norm.running_mean, norm.bias):
            tensor.data.normal_()
    mel = torch.randn(2, 128, 50, dtype=torch.float64, requires_grad=True)
    x = mel[:, None]
    for block in module.conv:
        inner = F.relu(block.bn1(block.conv1(x)))
        x = F.relu(block.bn2(block.conv2(inner)) + block.bn3(block.conv3(x)))
    wanted = module.linear(x.flatten(1, 2).transpose(1, 2))
    found = module(mel)
    torch.testing.assert_close(found, wanted)
    seed = torch.randn_like(wanted)
    inputs = [mel, module.conv[1].conv2.weight, module.conv[0].bn2.weight]
    for one, other in zip(
        torch.autograd.grad(found, inputs, seed), torch.autograd.grad(wanted, inputs, seed),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other)
    with torch.no_grad():  # all pieces share the folded weights
        torch.testing.assert_close(module(mel), wanted)
