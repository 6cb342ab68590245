"""Products by oneDNN: the values of torch's own, where no gradient is asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apex_reward.model.encoders.products import FastProducts, linear


@pytest.mark.parametrize("shape", [(7, 64), (2, 33, 64), (1, 1, 64)])
def test_linear_is_torch_s(shape: tuple[int, ...]) -> None:
    generator = torch.manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(48, 64, generator=generator)
    bias = torch.randn(48, generator=generator)
    with torch.no_grad():
        for added in (None, bias):
            exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
            torch.testing.assert_close(linear(x, weight, added).double(), exact, atol=1e-5, rtol=0)
        view = x.new_empty(64, 48).T
        view.copy_(weight)  # not contiguous, as a transposed matrix is
        torch.testing.assert_close(
            linear(x, view, bias), F.linear(x, weight, bias), atol=1e-5, rtol=0
        )


def test_modules_give_their_values_inside() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    modules = [
        nn.Linear(16, 8),
        nn.Linear(16, 8, bias=False),
        *(
            nn.Conv1d(9, 18, 1, bias=bias, stride=stride, padding=padding, groups=groups)
            for bias, stride, padding, groups in (
                (True, 1, 0, 1),
                (False, 1, 0, 1),
                (True, 2, 0, 1),
                (True, 1, 3, 1),
                (True, 1, 0, 9),
            )
        ),
        nn.Conv1d(9, 9, 3),
    ]
    for module in modules:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            module, x = module.to(dtype), x.to(dtype)
            with torch.no_grad():
                wanted = module(x)
                with FastProducts():
                    found = module(x)
            assert found.dtype == dtype
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_are_torch_s() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(3, 16, requires_grad=True)
    wanted = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    with FastProducts():
        found = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
