"""The convolutions of a HuBERT in (time, channel) layout, as matrix products over views.

A convolution of kernel k and stride s over a tensor (T, C) is the sum of one product per s
positions of its kernel: rows of s * C numbers, which lie next to each other already, times that
part of the weight. Nothing is copied or transposed, and whatever follows works on rows.

The group norm behind the first convolution, one group per channel, is folded into that
convolution: the mean and variance of w . x over all frames x follow from the frames' mean and
covariance. Behind that everything is local in time, so it runs chunk by chunk in the cache.

On other devices than a CPU the modules run as they are.

Shape key: N = segments, n = samples, T = rows in time, F = frames, C = channels, k = kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Rows of a stage's first layer that are worked on at once: few enough for the cache, enough for
# a product to run at full speed.
ROWS = 4096
# The first layers run chunk by chunk together, then the others: late layers want more frames.
FIRST_STAGE = 3


def frame_features(
    extractor: nn.Module, samples: Tensor, dtype: torch.dtype, recompute: bool = False
) -> Tensor:
    """Features (N, F, C) of samples (N, n): what `extractor` gives, transposed.

    Args:
        extractor: transformers' HubertFeatureEncoder.
        samples: of any float dtype.
        dtype: the number type to compute in; weights of another are cast. The first convolution,
            norms and activations behind it take at least float32.
        recompute: keep no inner tensors for the backward pass but recompute them, chunk by chunk.
    """
    layers: Any = extractor.conv_layers
    if samples.device.type != "cpu" or torch.compiler.is_compiling():
        return extractor(samples.to(layers[0].conv.weight.dtype)).transpose(1, 2)
    with torch.autocast(samples.device.type, enabled=False):
        wide = samples.to(torch.promote_types(dtype, torch.float32))
        rest = [_step(layer, dtype) for layer in layers[1:]]
        songs = []
        for song in wide:
            steps = [_first_step(layers[0], song, dtype), *rest]
            hidden = _in_chunks(steps[:FIRST_STAGE], song[:, None], recompute)
            songs.append(_in_chunks(steps[FIRST_STAGE:], hidden, recompute))
        return torch.stack(songs)


@dataclass(frozen=True)
class _Step:
    """A convolution with what follows it: (T, C) to (T', C')."""

    kernel: int
    stride: int
    # From which row on each part of the weight, (rows * C, C'), meets the input.
    parts: list[tuple[int, Tensor]]
    bias: Tensor | None
    layer: Any
    dtype: torch.dtype

    def rows(self, inputs: int) -> int:
        """How many rows come of so many."""
        return (inputs - self.kernel) // self.stride + 1

    def needs(self, outputs: int) -> int:
        """How many rows so many come from."""
        return (outputs - 1) * self.stride + self.kernel

    def __call__(self, x: Tensor) -> Tensor:
        count, total = self.rows(len(x)), self.bias
        for at, weight in self.parts:
            view = _rows(x, at, len(weight) // x.shape[1], self.stride, count)
            if total is None:
                total = view @ weight
            elif total is self.bias or total.requires_grad:
                total = torch.addmm(total, view, weight)
            else:
                total.addmm_(view, weight)
        assert total is not None
        norm = getattr(self.layer, "layer_norm", None)
        if isinstance(norm, nn.LayerNorm):
            weight, bias = (None if w is None else w.to(total) for w in (norm.weight, norm.bias))
            total = F.layer_norm(total, norm.normalized_shape, weight, bias, norm.eps)
        return _activated(self.layer.activation, total).to(self.dtype)


def _activated(activation: Any, x: Tensor) -> Tensor:
    if x.requires_grad or getattr(activation, "act", None) is not F.gelu:
        return activation(x)
    return torch.ops.aten.gelu_(x)


def _rows(x: Tensor, at: int, width: int, stride: int, count: int) -> Tensor:
    """Rows (count, width * C) of (T, C): `width` neighbours from row `at` on, every `stride`."""
    if width == stride:
        return x[at : at + stride * count].reshape(count, -1)
    if width == 1:
        return x[at::stride][:count]
    return x[at:].unfold(0, width, stride)[:count].transpose(1, 2).flatten(1)


def _step(layer: Any, dtype: torch.dtype) -> _Step:
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    weight, bias = layer.conv.weight.to(dtype), layer.conv.bias
    parts = [
        # A last part of one row would stay a view, which every product would copy.
        (at, weight[:, :, at : at + stride].permute(2, 1, 0).flatten(0, 1).contiguous())
        for at in range(0, kernel, stride)
    ]
    bias = None if bias is None else bias.to(dtype)
    return _Step(kernel, stride, parts, bias, layer, dtype)


def _first_step(layer: Any, song: Tensor, dtype: torch.dtype) -> _Step:
    """The first convolution of a song (n,), with its group norm folded in where it has one."""
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    weight = layer.conv.weight[:, 0].to(song)
    bias = None if layer.conv.bias is None else layer.conv.bias.to(song)
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, nn.GroupNorm):
        weight, bias = _folded(norm, weight, bias, song.unfold(0, kernel, stride))
    return _Step(kernel, stride, [(0, weight.T)], bias, layer, dtype)


def _folded(
    norm: nn.GroupNorm, weight: Tensor, bias: Tensor | None, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight (C, k) and bias (C,) that give normed products of frames (T, k).

    Variances are quadratic forms, in which a quiet band stands under a loud one: float64 keeps it.
    The norm takes out the convolution's own bias, which gets a gradient of 0.
    """
    exact = torch.float32 if frames.device.type == "mps" else torch.float64
    values, own = frames.to(exact), weight.to(exact)
    mean = values.mean(dim=0)
    centred = values - mean
    covariance = centred.T @ centred / len(values)
    variance = ((own @ covariance) * own).sum(dim=1)
    scale = norm.weight.to(exact) / (variance + norm.eps).sqrt()
    shift = norm.bias.to(exact) - scale * (own @ mean)
    if bias is not None:
        shift = shift + 0 * bias
    return (own * scale[:, None]).to(weight), shift.to(weight)


def _in_chunks(steps: list[_Step], x: Tensor, recompute: bool) -> Tensor:
    """All steps over (T, C), so many rows at a time that what they hand on stays in the cache."""
    if not steps:
        return x
    outputs, stride = len(x), 1
    for step in steps:
        outputs, stride = step.rows(outputs), stride * step.stride
    size = max(1, ROWS * steps[0].stride // stride)
    parts = []
    for start in range(0, outputs, size):
        inputs = min(size, outputs - start)
        for step in reversed(steps):
            inputs = step.needs(inputs)
        piece = x[start * stride : start * stride + inputs]
        if recompute and torch.is_grad_enabled():
            options: Any = {"use_reentrant": False, "preserve_rng_state": False}
            parts.append(checkpoint(_through, steps, piece, **options))
        else:
            parts.append(_through(steps, piece))
    return torch.cat(parts)


def _through(steps: list[_Step], x: Tensor) -> Tensor:
    for step in steps:
        x = step(x)
    return x
