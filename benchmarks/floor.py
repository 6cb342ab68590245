"""The floor of a forward pass: the encoder's arithmetic, and the rate of a large matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from clock import clock
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertModel

from apex_reward.model import ApexConfig


def segment_work(config: ApexConfig, device: str = "cpu") -> int:
    """Floating-point operations of a segment, with plain attention: fused kernels go uncounted."""
    plain = config.encoder_config()
    plain._attn_implementation = "eager"
    segment = torch.zeros(1, config.segment_samples, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        HubertModel(plain).to(device).eval()(segment)
    return counter.get_total_flops()


def matmul_rate(
    size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    seconds: Callable[[torch.device | str], float] = clock,
) -> float:
    """Operations per second of a square matrix product, the best of several.

    Args:
        seconds: `clock`, or `work_clock` where processor time is measured.
    """
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()
    best = float("inf")
    for _ in range(15):
        started = seconds(device)
        a @ b
        best = min(best, seconds(device) - started)
    return 2 * size**3 / best
