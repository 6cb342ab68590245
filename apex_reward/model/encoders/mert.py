"""MERT: transformers' HuBERT, run up to the last needed layer, keeping only time-means.

`MertSegments` is APEX's encoder (segments of 30 s), `MertSongs` TuneJury's (whole songs).

Shape key: B = songs, T = samples, N = segments, n = samples in a segment, F = frames, L = kept
layers, W = width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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

from apex_reward.model.config import ApexConfig
from apex_reward.model.encode import ModuleEncoder
from apex_reward.model.encoders.front_end import frame_features
from apex_reward.model.encoders.weight_norm import WeightNormConv1d
from apex_reward.model.packing import graph_settings
from apex_reward.model.precision import CheckedEncoder, FrozenModule, working_dtype

# The convolutions take 400 samples at once; a shorter song is padded with zeros.
SHORTEST = 400


class MertEncoder(CheckedEncoder, FrozenModule, HubertModel):
    """Segments (N, n) to layer embeddings (N, L, W), at least float32. Always in eval mode.

    Tensor names are those of the published MERT checkpoint (with today's names of the
    weight-normalised positional convolution). No attention mask: the published pipeline's
    all-ones mask changes nothing.
    """

    def __init__(self, config: HubertConfig, layers: Sequence[int]) -> None:
        super().__init__(config)
        positions: Any = self.encoder.pos_conv_embed
        if positions.batch_norm is None:
            positions.conv = WeightNormConv1d(positions.conv)
        self.kept_layers = tuple(layers)
        self.eval()

    def encode(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Time-means of the kept hidden states, (N, L, W).

        Args:
            samples: (N, n) mono segments at the encoder's rate, of any float dtype.
            real: (N,) real samples; the mean is over frames inside them. None: over all frames.
        """
        dtype = working_dtype(self, samples.device.type)
        frugal = graph_settings().frugal and torch.is_grad_enabled()
        features = frame_features(self.feature_extractor, samples, dtype, recompute=frugal)
        hidden = self.feature_projection(features)
        hidden = hidden + self.encoder.pos_conv_embed(hidden)
        # The larger model normalises at the end of the stack, not at its start.
        last = self.config.num_hidden_layers if self.config.do_stable_layer_norm else 0
        frames = None if real is None else frame_weights(self.frame_counts(real), hidden.shape[1])
        means = []
        for index in range(self.kept_layers[-1] + 1):
            if index > 0:
                layer = self.encoder.layers[index - 1]
                hidden = _recomputed(layer, hidden) if frugal else layer(hidden)
            if index == last:
                hidden = self.encoder.layer_norm(hidden)
            if index in self.kept_layers:
                means.append(time_mean(hidden, frames))
        return torch.stack(means, dim=1)

    def frame_counts(self, samples: Tensor) -> Tensor:
        """How many frames lie wholly in the first `samples` samples, at least 1."""
        counts = samples
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            counts = (counts - kernel).div(stride, rounding_mode="floor") + 1
        return counts.clamp_min(1)


def frame_weights(counts: Tensor, frames: int) -> Tensor:
    """Weights (N, frames) of a mean over the first `counts` (N,) frames."""
    inside = torch.arange(frames, device=counts.device) < counts[:, None]
    return inside.to(torch.float32) / counts.clamp_max(frames)[:, None]


def _recomputed(layer: nn.Module, hidden: Tensor) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _kept_or_recomputed)
    output: Tensor = checkpoint(
        layer, hidden, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return output


def _kept_or_recomputed(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
    """Keep what is small beside its work: attention and products narrower than their input.

    At the published size that is more than half of a layer's time for two tensors of its width.
    """
    name = operator.overloadpacket.__name__
    narrows = name == "addmm" and inputs[1].shape[1] > inputs[2].shape[1]
    if narrows or name.startswith("_scaled_dot_product"):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def time_mean(hidden: Tensor, frames: Tensor | None) -> Tensor:
    """Mean (N, W) over frames (N, F, W), in float32 at least; `frames`: weights (N, F)."""
    # Half-precision means over thousands of frames lose digits.
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if frames is None:
        return hidden.mean(dim=1)
    # Not a matrix product: autocast would run that in half precision.
    return (hidden * frames.to(hidden.dtype)[:, :, None]).sum(dim=1)


class MertSegments(ModuleEncoder):
    """A `SongEncoder` over an APEX model's encoder and the segments of its configuration.

    Args:
        encoder: segments (N, n) to layer embeddings (N, L, W).
        config: rate, segment length and tail.
    """

    def __init__(self, encoder: CheckedEncoder, config: ApexConfig) -> None:
        self.encoder, self.config = encoder, config
        self.name = "student" if config.student else "mert"
        self.sample_rate, self.batch_segments = config.sample_rate, config.batch_segments
        self.window, self.tail = config.segment_samples, config.segment_tail

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """Layer embeddings (N, L, W); `real` counts with the tail `mask` only."""
        return self.encoder(samples, real if self.tail == "mask" else None)

    def weights(self) -> Sequence[nn.Module]:
        """The encoder."""
        return (self.encoder,)

    def settings(self) -> Hashable:
        """Layers and segments."""
        config = self.config
        segments = config.segment_samples, config.sample_rate, config.segment_tail
        return self.name, tuple(config.layers), segments


class MertSongs(ModuleEncoder):
    """A `SongEncoder` of whole songs, (1, W) each; memory grows with the square of their length.

    Args:
        encoder: a `MertEncoder` that keeps its last hidden state only (`whole_song_mert`).
    """

    name = "mert"
    sample_rate = 24_000
    shortest = SHORTEST

    def __init__(self, encoder: MertEncoder) -> None:
        self.encoder = encoder

    def encode(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Time-means (1, W) of the last hidden state."""
        return self.encoder(samples)[:, 0]

    def weights(self) -> Sequence[nn.Module]:
        """The encoder."""
        return (self.encoder,)

    def settings(self) -> Hashable:
        """The encoder's own."""
        return self.encoder.kept_layers, self.encoder.config.to_json_string()


def whole_song_mert(config: HubertConfig) -> MertEncoder:
    """A `MertEncoder` of that configuration that keeps its last hidden state."""
    return MertEncoder(config, layers=(config.num_hidden_layers,))
