"""The floor of a forward pass: the encoder's arithmetic, and the rate of a large matrix product."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertModel

from apex_reward.model import ApexConfig


def segment_work(config: ApexConfig, device: str = "cpu") -> int:
    """Floating-point operations of a segment, with plain attention: fused kernels go uncounted."""
    plain = config.encoder_config()
    plain._attn_implementation = "eager"
    segment = torch.zeros(1, round(config.segment_seconds * config.sample_rate), device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        HubertModel(plain).to(device).eval()(segment)
    return counter.get_total_flops()
