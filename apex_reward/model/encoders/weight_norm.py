"""A weight-normalised convolution that can be pickled, copied and sent to other processes.

torch's parametrisations make a class per instance, which pickle cannot find. This module has their
tensor names, so that checkpoints fit both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# From this kernel on spectra are cheaper than products on a CPU.
LONG_KERNEL = 32


class WeightNormConv1d(nn.Module):
    """A 1-D convolution whose weight is g * v / |v|, a norm for each position in the kernel.

    Salimans and Kingma 2016, equation 2. Computes in at least float32, also under autocast: grouped
    bfloat16 convolutions are wrong for some shapes on some CPUs.

    Args:
        conv: a convolution under torch's `weight_norm(conv, dim=2)`, whose parameters it takes.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        normed: Any = conv.parametrizations["weight"]  # type: ignore[index]
        self.bias = conv.bias
        self.parametrizations = nn.Module()
        self.parametrizations.weight = nn.Module()
        self.parametrizations.weight.original0 = normed.original0
        self.parametrizations.weight.original1 = normed.original1
        self.padding, self.groups = int(conv.padding[0]), conv.groups
        self._spectrum: tuple[object, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the kernel's spectrum, which a copy computes anew."""
        return {**self.__dict__, "_spectrum": None}

    @property
    def _stored(self) -> tuple[Tensor, Tensor]:
        parts: Any = self.parametrizations.weight
        return parts.original0, parts.original1

    @property
    def weight(self) -> Tensor:
        """The weight (out, in / groups, kernel), in at least float32."""
        magnitude, direction = self._stored
        direction = direction.to(torch.promote_types(direction.dtype, torch.float32))
        norm = torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)
        return direction * (magnitude.to(direction) / norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, T) to (N, out, T'), in the dtype of `x`."""
        kernel, wide = self._stored[1].shape[2], torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        long = kernel >= LONG_KERNEL and x.shape[2] >= 2 * kernel
        with torch.autocast(x.device.type, enabled=False):
            if long and x.device.type == "cpu" and not torch.compiler.is_compiling():
                y = self._by_spectra(x.to(wide), kernel)
                y = y if bias is None else y + bias[:, None]
            else:
                weight = self.weight.to(wide)
                y = F.conv1d(x.to(wide), weight, bias, padding=self.padding, groups=self.groups)
        return y.to(x.dtype)

    def _by_spectra(self, x: Tensor, kernel: int) -> Tensor:
        """The convolution by overlap-save: spectra of blocks times the kernel's, group by group."""
        size, songs, groups = 2 * kernel, len(x), self.groups
        outputs = x.shape[2] + 2 * self.padding - kernel + 1
        blocks, bins = -(-outputs // kernel), kernel + 1
        end = (blocks + 1) * kernel - self.padding - x.shape[2]
        pieces = F.pad(x, (self.padding, end)).unfold(2, size, kernel)
        found = torch.fft.rfft(pieces).view(songs, groups, -1, blocks, bins)
        found = found.permute(4, 1, 0, 3, 2).reshape(bins * groups, songs * blocks, -1)
        product = torch.bmm(found, self._kernel_spectrum(x.dtype))
        product = product.view(bins, groups, songs, blocks, -1)
        product = product.permute(2, 1, 4, 3, 0).reshape(songs, -1, blocks, bins)
        # The last half of a block wraps around.
        y = torch.fft.irfft(product, size)[..., :kernel]
        return y.flatten(2)[..., :outputs]

    def _kernel_spectrum(self, dtype: torch.dtype) -> Tensor:
        """The kernel's conjugate spectrum (bins * groups, in / groups, out / groups).

        Computed once for a frozen weight.
        """
        # Only a parameter tells by its address and version whether its values changed.
        frozen = all(type(w) is nn.Parameter and not w.requires_grad for w in self._stored)
        key = (dtype, *((w.data_ptr(), w._version) for w in self._stored)) if frozen else None
        if frozen and self._spectrum is not None and self._spectrum[0] == key:
            return self._spectrum[1]
        weight = self.weight.to(dtype)
        bins = torch.fft.rfft(weight, 2 * weight.shape[2]).conj()
        grouped = bins.unflatten(0, (self.groups, -1))
        # One layout for the product of every bin and group.
        spectrum = grouped.permute(3, 0, 2, 1).flatten(0, 1).contiguous().resolve_conj()
        if frozen:
            self._spectrum = key, spectrum
        return spectrum
