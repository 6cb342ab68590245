"""Attention by products: its numbers, and where it stands in for the fused kernel."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from apex_reward.model.encoders import attention
from tests.support import tiny_model

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def made_up(
    songs: int = 2, positions: int = attention.ROWS + 3, dtype: torch.dtype = torch.float32
) -> Heads:
    """Query, key and value (N, 3, T, 8), laid out as the projections leave them."""
    torch.manual_seed(0)
    heads = torch.randn(3, songs, positions, 3, 8).transpose(2, 3).to(dtype)
    return heads[0] * 3, heads[1], heads[2]


def test_products_are_the_softmax_of_the_scores_times_the_values() -> None:
    query, key, value = (x.double() for x in made_up())
    found = attention.attention_by_products(query, key, value, 0.25)
    weights = torch.einsum("natd,nasd->nats", query, key).mul(0.25).softmax(dim=-1)
    assert torch.allclose(found, torch.einsum("nats,nasd->ntad", weights, value), atol=1e-12)


def test_bfloat16_is_as_close_to_float64_as_its_digits_allow() -> None:
    query, key, value = made_up(dtype=torch.bfloat16)
    found = attention.attention_by_products(query, key, value, 0.25).double()
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=0.25)
    error = (found - exact.transpose(1, 2)).norm() / exact.norm()
    assert 1e-4 < error < 0.02


@pytest.mark.parametrize(
    ("dtype", "gradient", "masked", "able", "by_products"),
    [
        (torch.bfloat16, False, False, True, True),
        (torch.bfloat16, False, False, False, False),
        (torch.float32, False, False, True, False),
        (torch.bfloat16, True, False, True, False),
        (torch.bfloat16, False, True, True, False),
    ],
)
def test_where_the_fused_kernel_is_slow_and_no_graph_is_wanted(
    dtype: torch.dtype,
    gradient: bool,
    masked: bool,
    able: bool,
    by_products: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    products = Mock(wraps=attention.attention_by_products)
    monkeypatch.setattr(attention, "attention_by_products", products)
    query, key, value = made_up(songs=1, positions=5, dtype=dtype)
    query.requires_grad_(gradient)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool) if masked else None
    module = torch.nn.Module()
    module.is_causal = False
    found, _ = attention.attention(module, query, key, value, mask, scaling=0.25)
    exact = F.scaled_dot_product_attention(query, key, value, scale=0.25).transpose(1, 2)
    assert torch.allclose(found, exact, atol=0.05)
    assert products.called == by_products
    assert found.requires_grad == gradient


def test_the_encoder_takes_it_unless_another_attention_is_asked_for() -> None:
    encoder = tiny_model().encoder
    assert encoder.config._attn_implementation == attention.NAME
    samples = 0.1 * torch.randn(1, 6_000)
    with torch.no_grad():
        found = encoder(samples)
        encoder.config._attn_implementation = "sdpa"
        assert torch.equal(found, encoder(samples))
        encoder.config._attn_implementation = "eager"
        assert torch.allclose(found, encoder(samples), atol=1e-5)
