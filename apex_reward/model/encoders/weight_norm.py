"""A weight-normalised convolution that can be pickled, copied and sent to other processes.

torch's parametrisations make a class per instance, which no pickle can find again. This module
keeps their tensor names, so that checkpoints fit either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WeightNormConv1d(nn.Module):
    """A 1-D convolution whose weight is g * v / |v|, a norm for each position in the kernel.

    Salimans and Kingma 2016, equation 2. Computes in at least float32, also under autocast: grouped
    bfloat16 convolutions are wrong for some shapes on some CPUs.

    Args:
        conv: a convolution under torch's `weight_norm(conv, dim=2)`, whose parameters are taken.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        normed: Any = conv.parametrizations["weight"]  # type: ignore[index]
        self.bias = conv.bias
        self.parametrizations = nn.Module()
        self.parametrizations.weight = nn.Module()
        self.parametrizations.weight.original0 = normed.original0
        self.parametrizations.weight.original1 = normed.original1
        self.settings: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
        }
        self._folded: tuple[object, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the folded weight, which is made anew."""
        return {**self.__dict__, "_folded": None}

    @property
    def weight(self) -> Tensor:
        """The weight (out, in / groups, kernel), worked out once while its parts are frozen."""
        parts: Any = self.parametrizations.weight
        magnitude, direction = parts.original0, parts.original1
        key = _identity(magnitude, direction)
        if key is None:
            return _normed(magnitude, direction)
        folded = self._folded
        if folded is None or folded[0] != key:
            with torch.no_grad():
                folded = key, _normed(magnitude, direction)
            self._folded = folded
        return folded[1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, T) to (N, out, T'), in the dtype of `x`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = nn.functional.conv1d(x.to(dtype), self.weight.to(dtype), bias, **self.settings)
        return y.to(x.dtype)


def _normed(magnitude: Tensor, direction: Tensor) -> Tensor:
    dtype = torch.promote_types(direction.dtype, torch.float32)
    return torch._weight_norm(direction.to(dtype), magnitude.to(dtype), 2)


def _identity(*weights: Tensor) -> object | None:
    """Equal as long as frozen weights hold the same values; None where that cannot be told."""
    if torch.compiler.is_compiling():
        return None
    if any(type(w) is not nn.Parameter or w.requires_grad or w.is_inference() for w in weights):
        return None
    return tuple((w.data_ptr(), w._version, w.dtype, w.device) for w in weights)
