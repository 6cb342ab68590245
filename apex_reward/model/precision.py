"""Small modules in full precision, whatever the number type of the model around them."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def in_full_precision(module: nn.Module, x: Tensor, *args: Any) -> Any:
    """`module(x, *args)` outside autocast, with weights and `x` widened to at least float32."""
    weight = next(chain(module.parameters(), module.buffers()))
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        if weight.dtype == dtype:
            return module(x.to(dtype), *args)
        state = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in [*module.named_parameters(), *module.named_buffers()]
        }
        return torch.func.functional_call(module, state, (x.to(dtype), *args))
