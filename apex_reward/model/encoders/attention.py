"""Attention of the encoders in the way that is fast where it runs.

torch's fused kernel is, but for bfloat16 on a CPU that has instructions for products of it and none
for tiles: there it runs at the speed of float32, at 37% of what a product reaches, and products of
a few rows at a time take two thirds of its time.

Shape key: N = songs, A = attention heads, T = positions, D = numbers of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "fastest_sdpa"
# Queries at once: few enough that their weights over all keys stay in the cache.
ROWS = 256


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """As every attention function of transformers: (N, A, T, D) each to (N, T, A, D)."""
    wanted = torch.is_grad_enabled() and (query.requires_grad or value.requires_grad)
    if wanted or attention_mask is not None or scaling is None or not _by_products(query):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    return attention_by_products(query, key, value, scaling), None


def attention_by_products(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention (N, T, A, D) without mask, of any number type.

    Scores are rounded to it before the softmax, as transformers' eager attention rounds them.
    """
    found = torch.empty_like(query.transpose(1, 2))
    scaled = query * scaling
    for song in range(len(query)):
        for head in range(query.shape[1]):
            keys, values = key[song, head].contiguous().T, value[song, head].contiguous()
            parts = scaled[song, head].split(ROWS), found[song, :, head].split(ROWS)
            for rows, out in zip(*parts, strict=True):
                out.copy_((rows @ keys).softmax(dim=-1) @ values)
    return found


def _by_products(query: Tensor) -> bool:
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
    )


AttentionInterface.register(NAME, attention)
