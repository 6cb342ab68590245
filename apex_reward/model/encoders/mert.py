"""MERT: transformers' HuBERT, run up to the last needed layer, keeping only time-means.

Shape key: N = segments, n = samples in a segment, F = frames, L = kept layers, W = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import HubertConfig, HubertModel

from apex_reward.model.encoders import attention
from apex_reward.model.encoders.front_end import frame_features
from apex_reward.model.encoders.weight_norm import WeightNormConv1d
from apex_reward.model.graph import graph_settings
from apex_reward.model.probe import checked_dtype, in_float32


class MertEncoder(HubertModel):
    """Segments (N, n) to layer embeddings (N, L, W). Always in eval mode.

    Tensor names are those of the published MERT checkpoint (with today's names of the
    weight-normalised positional convolution). No attention mask: the published pipeline's
    all-ones mask changes nothing.
    """

    def __init__(self, config: HubertConfig, layers: Sequence[int]) -> None:
        super().__init__(config)
        if self.config._attn_implementation == "sdpa":
            self.config._attn_implementation = attention.NAME
        positions: Any = self.encoder.pos_conv_embed
        if positions.batch_norm is None:
            positions.conv = WeightNormConv1d(positions.conv)
        self.kept_layers = tuple(layers)
        self.eval()

    def train(self, mode: bool = True) -> MertEncoder:
        """Stay in eval mode: no dropout, SpecAugment or layer drop, whatever a trainer asks."""
        return super().train(False)

    def forward(self, segments: Tensor, real: Tensor | None = None) -> Tensor:
        """Time-means of the kept hidden states, (N, L, W), at least float32.

        A reduced precision that is wrong here gives way to float32 (`model.probe`).

        Args:
            segments: (N, n) mono samples at the encoder's rate, of any float dtype.
            real: (N,) real samples; where given, only frames that lie in real audio are averaged.
        """
        dtype = self._working_dtype(segments.device.type)
        if checked_dtype(self, segments.device, dtype, autocast=dtype != self.dtype) != dtype:
            return in_float32(self, segments, real)
        return self._layer_means(segments, real)

    def _layer_means(self, segments: Tensor, real: Tensor | None) -> Tensor:
        dtype = self._working_dtype(segments.device.type)
        frugal = graph_settings().frugal and torch.is_grad_enabled()
        features = frame_features(self.feature_extractor, segments, dtype, recompute=frugal)
        hidden = self.feature_projection(features)
        hidden = hidden + self.encoder.pos_conv_embed(hidden)
        # The larger model normalises at the end of the stack, not at its start.
        last = self.config.num_hidden_layers if self.config.do_stable_layer_norm else 0
        frames = None if real is None else self._frame_weights(real, hidden.shape[1])
        means = []
        for index in range(self.kept_layers[-1] + 1):
            if index > 0:
                layer = self.encoder.layers[index - 1]
                hidden = _recomputed(layer, hidden) if frugal else layer(hidden)
            if index == last:
                hidden = self.encoder.layer_norm(hidden)
            if index in self.kept_layers:
                means.append(_time_mean(hidden, frames))
        return torch.stack(means, dim=1)

    def _working_dtype(self, device_type: str) -> torch.dtype:
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return self.dtype

    def frame_counts(self, samples: Tensor) -> Tensor:
        """How many frames lie wholly in the first `samples` samples, at least 1."""
        counts = samples
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            counts = (counts - kernel).div(stride, rounding_mode="floor") + 1
        return counts.clamp_min(1)

    def _frame_weights(self, real: Tensor, frames: int) -> Tensor:
        counts = self.frame_counts(real)[:, None]
        inside = torch.arange(frames, device=real.device) < counts
        return inside / counts.clamp_max(frames)


def _recomputed(layer: nn.Module, hidden: Tensor) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _kept_or_recomputed)
    found: Tensor = checkpoint(
        layer, hidden, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return found


def _kept_or_recomputed(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
    """Keep what is small beside its work: attention and products narrower than their input.

    At the published size that is more than half of a layer's time for two tensors of its width.
    """
    name = operator.overloadpacket.__name__
    narrows = name == "addmm" and inputs[1].shape[1] > inputs[2].shape[1]
    if narrows or name.startswith("_scaled_dot_product"):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _time_mean(hidden: Tensor, frames: Tensor | None) -> Tensor:
    # Half-precision means over thousands of frames lose digits.
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if frames is None:
        return hidden.mean(dim=1)
    # Not a matrix product: autocast would run that in half precision.
    return (hidden * frames.to(hidden.dtype)[:, :, None]).sum(dim=1)
