"""LoRA adapters on an encoder's attention (Hu et al. 2021), through peft."""

from __future__ import annotations

from typing import Any

from torch import nn

from apex_reward.errors import UsageError

RANK, SCALE = 8, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def add_adapters(encoder: nn.Module) -> nn.ModuleList:
    """Put LoRA adapters on the attention projections; only they require gradients.

    Returns:
        The adapters' own modules, which hold nothing of the encoder.

    Raises:
        UsageError: the encoder has no such projections.
    """
    from peft import LoraConfig, inject_adapter_in_model

    encoder.requires_grad_(False)
    try:
        inject_adapter_in_model(
            LoraConfig(r=RANK, lora_alpha=SCALE, target_modules=TARGETS), encoder
        )
    except ValueError as error:
        raise UsageError(f"this encoder takes no adapters: {error}") from error
    adapters = nn.ModuleList()
    for layer in _adapted(encoder):
        adapters += [layer.lora_A, layer.lora_B]
    return adapters


def merge_adapters(encoder: nn.Module) -> None:
    """Work the adapters into the weights and take them out: the encoder's names are as before."""
    for name, layer in [(n, m) for n, m in encoder.named_modules() if m in set(_adapted(encoder))]:
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(encoder.get_submodule(parent), leaf, layer.get_base_layer())


def _adapted(encoder: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in encoder.modules() if isinstance(module, LoraLayer)]
