"""MERT as APEX hears songs: 30-second segments at 24 kHz, time-means of four layers each.

Shape key: B = songs, T = samples, N = segments, n = samples in a segment, L = layers, W = width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apex_reward.audio.segment import Segments, cut_segments

if TYPE_CHECKING:
    from apex_reward.model.config import ApexConfig
    from apex_reward.model.encoders.mert import MertEncoder


class MertSegments:
    """A `SongEncoder` over a MERT encoder and the segments of a configuration.

    Args:
        encoder: segments (N, n) to layer embeddings (N, L, W).
        config: rate, segment length and tail.
    """

    name = "mert"

    def __init__(self, encoder: MertEncoder, config: ApexConfig) -> None:
        self.encoder, self.config = encoder, config
        self.sample_rate, self.batch_segments = config.sample_rate, config.batch_segments
        self.window: int | None = config.segment_samples
        self.by_length = config.segment_tail == "mask"

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """Songs (B, T) to segments, by the configuration's `segment_tail`."""
        config = self.config
        return cut_segments(
            songs, lengths, config.segment_samples, config.sample_rate, config.segment_tail
        )

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """Layer embeddings (N, L, W); `real` counts with the tail `mask` only."""
        return self.encoder(samples, real if self.by_length else None)

    def parameters(self) -> Iterable[nn.Parameter]:
        """The encoder's weights."""
        return self.encoder.parameters()

    def fingerprint(self) -> Hashable:
        """A hash of weights and settings."""
        config = self.config
        settings = [config.layers, config.segment_samples, config.sample_rate, config.segment_tail]
        return json.dumps([self.name, *settings]), weights_hash(self.encoder)


def weights_hash(module: nn.Module) -> str:
    """A hash of a module's tensors by name: equal weights, equal hash."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()
