"""Modules that stay in eval mode, and where their encoder's number type is set."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn


class FrozenModule(nn.Module):
    """A module that a policy's `train()` leaves as it is: a reward model must not change."""

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)


class FrozenModel(FrozenModule):
    """A reward model around one `encoder`, whose number type can be set; the rest keeps float32."""

    encoder: Any

    def set_encoder_dtype(self, dtype: torch.dtype) -> None:
        """Compute the encoder's products in `dtype`; its norms and the rest keep float32."""
        self.encoder.to(dtype)
