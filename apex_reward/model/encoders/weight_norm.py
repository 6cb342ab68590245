"""A weight-normalised convolution that can be pickled, copied and sent to other processes.

torch's parametrisations make a class per instance, which no pickle can find again. This module
keeps their tensor names, so that checkpoints fit either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# From this kernel on spectra are cheaper than products on a CPU.
LONG_KERNEL = 32


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
        self._spectra: tuple[object, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the folded weight and its spectrum, which are made anew."""
        return {**self.__dict__, "_folded": None, "_spectra": None}

    @property
    def weight(self) -> Tensor:
        """The weight (out, in / groups, kernel), worked out once while its parts are frozen."""
        parts: Any = self.parametrizations.weight
        magnitude, direction = parts.original0, parts.original1
        key = _identity(magnitude, direction)
        self._folded, weight = _once(self._folded, key, lambda: _normed(magnitude, direction))
        return weight

    @property
    def _kernel(self) -> int:
        parts: Any = self.parametrizations.weight
        return int(parts.original1.shape[2])

    def _spectrum(self, dtype: torch.dtype) -> Tensor:
        """The kernel's conjugate spectrum (bins * groups, in / groups, out / groups), once too."""
        parts: Any = self.parametrizations.weight
        identity = _identity(parts.original0, parts.original1)
        groups = self.settings["groups"]

        def found() -> Tensor:
            weight = self.weight.to(dtype)
            outputs, inputs, kernel = weight.shape
            bins = torch.fft.rfft(weight, 2 * kernel).conj()
            grouped = bins.view(groups, outputs // groups, inputs, kernel + 1)
            # One layout for the product of every bin and group.
            return grouped.permute(3, 0, 2, 1).flatten(0, 1).contiguous().resolve_conj()

        key = None if identity is None else (identity, dtype)
        self._spectra, spectrum = _once(self._spectra, key, found)
        return spectrum

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, T) to (N, out, T'), in the dtype of `x`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            if self._by_spectra(x):
                y = self._blocks(x.to(dtype))
                y = y if bias is None else y + bias[:, None]
            else:
                y = nn.functional.conv1d(x.to(dtype), self.weight.to(dtype), bias, **self.settings)
        return y.to(x.dtype)

    def _by_spectra(self, x: Tensor) -> bool:
        """Whether Fourier transforms beat the plain convolution: on CPUs, for long kernels."""
        kernel, settings = self._kernel, self.settings
        long = kernel >= LONG_KERNEL and x.shape[2] >= 2 * kernel
        plain: bool = settings["stride"] == settings["dilation"] == (1,)
        return long and plain and x.device.type == "cpu" and not torch.compiler.is_compiling()

    def _blocks(self, x: Tensor) -> Tensor:
        """The convolution by overlap-save: spectra of blocks times the kernel's, group by group."""
        spectrum = self._spectrum(x.dtype)  # (bins * groups, in / groups, out / groups)
        (padding,), groups = self.settings["padding"], self.settings["groups"]
        kernel = self._kernel
        size, songs = 2 * kernel, len(x)
        outputs = x.shape[2] + 2 * padding - kernel + 1
        blocks, bins = -(-outputs // kernel), kernel + 1
        end = (blocks + 1) * kernel - padding - x.shape[2]
        pieces = nn.functional.pad(x, (padding, end)).unfold(2, size, kernel)
        found = torch.fft.rfft(pieces).view(songs, groups, -1, blocks, bins)
        found = found.permute(4, 1, 0, 3, 2).reshape(bins * groups, songs * blocks, -1)
        product = torch.bmm(found, spectrum).view(bins, groups, songs, blocks, -1)
        product = product.permute(2, 1, 4, 3, 0).reshape(songs, -1, blocks, bins)
        # The last half of a block wraps around.
        y = torch.fft.irfft(product, size)[..., :kernel]
        return y.flatten(2)[..., :outputs]


def _once(
    kept: tuple[object, Tensor] | None, key: object | None, make: Callable[[], Tensor]
) -> tuple[tuple[object, Tensor] | None, Tensor]:
    """What was kept under that key, or else made and kept; without a key on the graph, anew."""
    if key is None:
        return kept, make()
    if kept is None or kept[0] != key:
        with torch.no_grad():
            kept = key, make()
    return kept, kept[1]


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
