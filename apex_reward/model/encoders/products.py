"""Products of float32 matrices on a CPU with AVX-512, by oneDNN instead of MKL where that wins.

MKL, which torch calls, uses AVX-512 on Intel's CPUs only; oneDNN's kernels use it on every CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Stride, padding, dilation and groups of a convolution that is a linear layer.
POINTWISE = ((1,), (0,), (1,), 1)


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
