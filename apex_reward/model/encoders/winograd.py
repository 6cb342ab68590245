"""3x3 convolutions with a quarter of the multiplications, as batched matrix products.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, arXiv 1509.09308): tiles of 6x6
inputs, 36 products of matrices, tiles of 4x4 outputs. The interpolation points 0, +-sqrt(1/2),
+-sqrt(2) and infinity keep the rounding of float32 at that of the direct convolution (the usual
points 0, +-1, +-2 have six times more).

Shape key: N = songs, I = input channels, O = output channels, H = rows, W = columns, R = tiles of
all songs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

OUT, KERNEL = 4, 3
TILE = OUT + KERNEL - 1
# Fewer channels than this make products that are too small to win on a CPU.
MIN_CHANNELS = 128
# Tiles at once: their 36 matrices stay near the cache.
TILES = 160


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(x, weight, padding=1)` of (N, I, H, W) and (O, I, 3, 3), by the faster algorithm.

    On a CPU in float32 or float64 with enough channels that is Winograd's; the output is then
    channels-last. Differentiable in both arguments.
    """
    wins = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
    if not wins:
        return F.conv2d(x, weight, padding=1)
    y: Tensor = _Conv3x3.apply(x, weight)
    return y


class _Conv3x3(torch.autograd.Function):
    """The gradient of the input is again a 3x3 convolution, with the flipped weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _winograd(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = conv3x3(gradient, weight.flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            for_weight = conv2d_weight(x, weight.shape, gradient, padding=1)
        return for_x, for_weight


def _winograd(x: Tensor, weight: Tensor) -> Tensor:
    songs, channels, height, width = x.shape
    outputs = len(weight)
    to_outputs, to_weights, to_inputs = (
        torch.as_tensor(matrix, dtype=x.dtype) for matrix in MATRICES
    )
    flat = weight.reshape(-1, KERNEL * KERNEL)
    products = (to_weights @ flat.T).view(-1, outputs, channels).transpose(1, 2).contiguous()
    rows, columns = -(-height // OUT), -(-width // OUT)
    grid = x.permute(0, 2, 3, 1)
    grid = F.pad(grid, (0, 0, 1, OUT * columns + 1 - width, 1, OUT * rows + 1 - height))
    y = x.new_empty(songs, rows, OUT, columns, OUT, outputs)
    step = max(1, TILES // rows)
    for start in range(0, columns, step):
        count = min(step, columns - start)
        piece = grid[:, :, OUT * start : OUT * (start + count) + 2]
        # (36, R * I): the inputs of each position in a tile.
        tiles = piece.unfold(1, TILE, OUT).unfold(2, TILE, OUT).permute(4, 5, 0, 1, 2, 3)
        inputs = (to_inputs @ tiles.reshape(TILE * TILE, -1)).view(TILE * TILE, -1, channels)
        summed = to_outputs @ torch.bmm(inputs, products).view(TILE * TILE, -1)
        parts = summed.view(OUT, OUT, songs, rows, count, outputs)
        y[:, :, :, start : start + count] = parts.permute(2, 3, 0, 4, 1, 5)
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
