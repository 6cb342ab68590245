"""The front end as products over views equals transformers' modules, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from apex_reward.model.encoders import front_end
from apex_reward.model.encoders.front_end import frame_features

KERNELS = {
    "published": ([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]),
    "odd": ([7, 5, 4], [3, 3, 2]),
    "wide steps": ([4, 2], [2, 3]),
    "single": ([10], [5]),
}


def extractor(norm: str = "group", bias: bool = False, kernels: str = "published") -> nn.Module:
    torch.manual_seed(0)
    kernel, stride = KERNELS[kernels]
    config = HubertConfig(
        conv_dim=[6] * len(kernel), conv_kernel=kernel, conv_stride=stride,
        feat_extract_norm=norm, conv_bias=bias,
    )  # fmt: skip
    found = HubertFeatureEncoder(config)
    for name, weight in found.named_parameters():
        if "layer_norm" in name:
            nn.init.normal_(weight, mean=0.5, std=0.5)
    return found.eval()


def by_modules(modules: Any, samples: Tensor) -> Tensor:
    return modules(samples).transpose(1, 2)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("norm", "bias"), [("group", False), ("group", True), ("layer", True)])
def test_values_and_all_gradients_are_those_of_the_modules(
    monkeypatch: pytest.MonkeyPatch, norm: str, bias: bool, kernels: str
) -> None:
    monkeypatch.setattr(front_end, "ROWS", 40)
    modules = extractor(norm, bias, kernels).double()
    samples = torch.randn(2, 3000, dtype=torch.float64, requires_grad=True) + 0.1
    wanted = by_modules(modules, samples)
    seed = torch.randn_like(wanted)
    leaves = [samples, *modules.parameters()]
    expected = torch.autograd.grad(wanted, leaves, seed)
    for recompute in (False, True):
        found = frame_features(modules, samples, torch.float64, recompute)
        torch.testing.assert_close(found, wanted)
        for own, other in zip(torch.autograd.grad(found, leaves, seed), expected, strict=True):
            torch.testing.assert_close(own, other, atol=1e-9, rtol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(frame_features(modules, samples, torch.float64), wanted)


def test_a_quiet_band_under_a_loud_one_keeps_its_size() -> None:
    """In float32 the variance of a differencing kernel would drown in that of a loud low tone."""
    modules: Any = extractor(kernels="single").requires_grad_(False)
    modules.conv_layers[0].conv.weight[:] = torch.tensor([1.0, -1.0] + [0.0] * 8)
    t = torch.arange(24_000, dtype=torch.float64)
    samples = (0.9 * torch.cos(6.2832e-4 * t) + 1e-4 * torch.cos(2.2 * t))[None]
    expected = by_modules(extractor(kernels="single").double(), samples)
    double = extractor(kernels="single").double().requires_grad_(False)
    double.load_state_dict(modules.state_dict())
    expected = by_modules(double, samples.float().double())
    found = frame_features(modules, samples.float(), torch.float32)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-3)


def test_reduced_precision_keeps_the_first_norm_exact_and_the_rest_close() -> None:
    modules = extractor().requires_grad_(False)
    samples = 0.1 * torch.randn(1, 4000)
    wanted = frame_features(modules, samples, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        found = frame_features(modules, samples, dtype)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(frame_features(modules, samples, dtype), found)
