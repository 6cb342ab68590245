"""Products of matrices on a CPU, and 3x3 convolutions with a quarter of the multiplications.

MKL, which torch calls, uses AVX-512 on Intel's CPUs only; oneDNN's kernels use it on every CPU.

The convolutions are Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, arXiv
1509.09308): tiles of 6x6 inputs, 36 products of matrices, tiles of 4x4 outputs. The interpolation
points 0, +-sqrt(1/2), +-sqrt(2) and infinity keep the rounding of float32 near that of the direct
convolution (the usual points 0, +-1, +-2 have six times more).

Shape key: N = songs, I = input channels, O = output channels, H = rows, W = columns, R = tiles of
all songs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode

# Stride, padding, dilation and groups of a convolution that is a linear layer.
POINTWISE = ((1,), (0,), (1,), 1)
OUT, KERNEL = 4, 3
TILE = OUT + KERNEL - 1
# Fewer channels than this make products that are too small to win on a CPU.
MIN_CHANNELS = 128
# Tiles at once: their 36 matrices stay near the cache.
TILES = 160


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)` by the faster library.

    Where gradients are asked for, and for other devices and number types, it is torch's own.

    Args:
        x: (..., I). weight: (O, I). bias: (O,) or None.
    """
    if _onednn_wins(x, weight):
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


def _onednn_wins(*tensors: Tensor) -> bool:
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    )


class FastProducts(TorchFunctionMode):
    """Inside `with FastProducts():`, linear layers and 1D convolutions of kernel 1 use `linear`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The replacements; every other function as it is."""
        options = kwargs or {}
        if func is F.linear:
            return linear(*args, **options)
        pointwise = func is F.conv1d and args[1].shape[2] == 1 and args[3:] == POINTWISE
        if pointwise and _onednn_wins(*args[:2]):
            return linear(args[0].transpose(1, 2), args[1][:, :, 0], args[2]).transpose(1, 2)
        return func(*args, **options)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, products: Tensor | None = None) -> Tensor:
    """`conv2d(x, weight, bias, padding=1)` of (N, I, H, W), by the faster algorithm.

    On a CPU in float32 or float64 with enough channels that is Winograd's; the output is then
    channels-last. Differentiable in x, weight and bias.

    Args:
        weight: (O, I, 3, 3).
        bias: (O,).
        products: `transformed(weight)`, if it is at hand.
    """
    if x.dtype != weight.dtype or not winograd_wins(weight):
        return F.conv2d(x, weight, bias, padding=1)
    y: Tensor = _Conv3x3.apply(x, weight, bias, products)
    return y


def winograd_wins(weight: Tensor) -> bool:
    """Whether `conv3x3` takes Winograd's algorithm for a weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@torch.no_grad()
def transformed(weight: Tensor) -> Tensor:
    """The 36 matrices (36, O, I) of a weight (O, I, 3, 3)."""
    to_products = torch.as_tensor(MATRICES[1], dtype=weight.dtype)
    flat = linear(to_products, weight.reshape(-1, KERNEL * KERNEL))
    return flat.view(-1, *weight.shape[:2])


class _Conv3x3(torch.autograd.Function):
    """The gradient of the input is again a 3x3 convolution, with the flipped weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, products: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _winograd(x, transformed(weight) if products is None else products, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            flipped = weight.flip(2, 3).transpose(0, 1)
            for_x = conv3x3(gradient, flipped, weight.new_zeros(len(flipped)))
        if ctx.needs_input_grad[1]:
            for_weight = conv2d_weight(x, weight.shape, gradient, padding=1)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum(dim=(0, 2, 3))
        return for_x, for_weight, for_bias, None


def _winograd(x: Tensor, products: Tensor, bias: Tensor) -> Tensor:
    songs, channels, height, width = x.shape
    count, outputs = products.shape[:2]
    to_outputs, _, to_inputs = (torch.as_tensor(matrix, dtype=x.dtype) for matrix in MATRICES)
    rows, columns = -(-height // OUT), -(-width // OUT)
    y = x.new_empty(songs, rows, OUT, columns, OUT, outputs)
    step = min(columns, max(1, TILES // rows))
    # Buffers for all pieces: fresh ones of this size would cost page faults.
    tiles = x.new_empty(TILE, TILE, songs, rows, step, channels)
    sums = x.new_empty(count * songs * rows * step, outputs)
    for start in range(0, columns, step):
        number = min(step, columns - start)
        left, right = OUT * start - 1, OUT * (start + number) + 1
        seen = x[..., max(left, 0) : right].permute(0, 2, 3, 1)
        sides = max(-left, 0), max(right - width, 0), 1, OUT * rows + 1 - height
        cut = F.pad(seen, (0, 0, *sides)).unfold(1, TILE, OUT).unfold(2, TILE, OUT)
        # (36, R * I): the inputs of each position in a tile.
        flat = tiles[..., :number, :].copy_(cut.permute(4, 5, 0, 1, 2, 3)).reshape(count, -1)
        inputs = linear(to_inputs, flat.T).view(count, -1, channels)
        parts = [linear(one, weight) for one, weight in zip(inputs, products, strict=True)]
        flat = torch.cat(parts, out=sums[: count * len(parts[0])]).view(count, -1)
        found = linear(to_outputs, flat.T, bias.repeat(len(parts[0])))
        found = found.view(OUT, OUT, songs, rows, number, outputs)
        y[:, :, :, start : start + number] = found.permute(2, 3, 0, 4, 1, 5)
    y = y.view(songs, OUT * rows, OUT * columns, outputs)
    return y[:, :height, :width].permute(0, 3, 1, 2)


def _matrices() -> tuple[Any, Any, Any]:
    """Transforms of outputs (16, 36), weights (36, 9) and inputs (36, 36), in float64.

    The transposed Toom-Cook algorithm: with V(k) the powers 0 to k - 1 of the points, outputs are
    V(4)' ((V(3) w) * (V(6)^-1' d)). Rows are scaled so that the inputs' transform has maximum 1.
    """
    points = np.array([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])

    def powers(count: int) -> Any:
        return np.vstack([points[:, None] ** np.arange(count), np.eye(count)[-1]])

    inputs = np.linalg.inv(powers(TILE)).T
    scale = np.abs(inputs).max(axis=1, keepdims=True)
    one_way = powers(OUT).T, powers(KERNEL) * scale, inputs / scale
    outputs, weights, inputs = (np.kron(matrix, matrix) for matrix in one_way)
    return outputs, weights, inputs


MATRICES = _matrices()
