"""A student's encoder: log-mel, two strided convolutions, a few conformer layers, a projection.

It has about a 300th of the multiplications of the published encoder. Its feature imitates the
teacher's pooled embedding. Frames are 80 ms long.

Shape key: N = segments, n = samples, M = mel frames (50 a second), F = frames (12.5 a second),
W = width of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apex_reward.model.encoders.mert import frame_weights, time_mean
from apex_reward.model.encoders.muq import Conformer, Mel, MuqConfig, computing_in, log_mel
from apex_reward.model.precision import CheckedEncoder, FrozenModule, weights_dtype

MEL = Mel(n_fft=1024, hop=480, bands=64)
# Brings the log-mel of music, in dB, to about 0 and 1.
MEAN, STD = 0.0, 20.0
FRAME_SAMPLES = 4 * MEL.hop


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of a student's encoder.

    Args:
        hidden_size: W.
        inner_size: width of the conformer.
        num_hidden_layers: its depth.
        num_attention_heads: of its attention.
        intermediate_size: inner width of its feed-forward blocks.
        kernel: of its depthwise convolution, odd.
    """

    hidden_size: int
    inner_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 384
    kernel: int = 15

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StudentConfig:
        """The sizes among the settings of an encoder."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def conformer(self) -> MuqConfig:
        """The sizes as the conformer takes them."""
        return MuqConfig(
            width=self.inner_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            feed_forward=self.intermediate_size,
            kernel=self.kernel,
        )


class StudentEncoder(CheckedEncoder, FrozenModule):
    """Segments (N, n) at 24 kHz to embeddings (N, 1, W), at least float32. Always in eval mode."""

    FULL = (nn.LayerNorm, nn.BatchNorm1d)

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config, inner = config, config.inner_size
        self.first = nn.Conv1d(MEL.bands, inner, kernel_size=4, stride=2, padding=1)
        self.second = nn.Conv1d(inner, inner, kernel_size=4, stride=2, padding=1)
        self.conformer = Conformer(config.conformer(), config.num_hidden_layers)
        self.embedding = nn.Linear(inner, config.hidden_size)
        self.eval()

    def encode(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Embeddings (N, 1, W).

        Args:
            samples: (N, n) mono segments at 24 kHz, of any float dtype.
            real: (N,) real samples; the mean is over frames inside them. None: over all frames.
        """
        return self.of_mel(mel_of(samples), real)

    def of_mel(self, mel: Tensor, real: Tensor | None = None) -> Tensor:
        """`encode` of the segments' log-mel (N, 64, M)."""
        weights = weights_dtype(self)
        wide = torch.promote_types(weights, torch.float32)
        with computing_in(weights, mel.device.type):
            frames = F.gelu(self.second(F.gelu(self.first(mel.to(wide)))))
            hidden = self.conformer(frames.transpose(1, 2).to(wide))
            shares = None
            if real is not None:
                counts = real.to(hidden.device).div(FRAME_SAMPLES, rounding_mode="floor")
                shares = frame_weights(counts.clamp_min(1), hidden.shape[1])
            return self.embedding(time_mean(hidden, shares)).to(wide)[:, None]


def mel_of(samples: Tensor) -> Tensor:
    """A student's log-mel (N, 64, n // 480) of segments (N, n), in float32 at least."""
    return log_mel(samples.to(torch.promote_types(samples.dtype, torch.float32)), MEAN, STD, MEL)
