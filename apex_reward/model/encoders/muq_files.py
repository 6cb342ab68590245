"""Readers of the published MuQ files: sizes from `config.json`, tensors under our names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Wav2Vec2ConformerConfig

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.encoders.muq import HOP, MELS, MuqConfig, MuqEncoder
from apex_reward.model.files import (
    load_checked,
    prefix_before,
    read_config,
    without_prefix,
)

PUBLISHED_MUQ = "OpenMuQ/MuQ-large-msd-iter"
# The first tensor of a MuQ: what stands before it is the prefix of its file.
ANCHOR = "conv.conv.0.conv1.weight"
# Parts of the file that no hidden state depends on: training targets, the class token, and the
# convolutional positions, which rotary ones replace.
UNUSED = (
    "cls_token", "quantizer", "rvq", "linear.", "conformer.pos_conv_embed.",
    "conformer.embed_positions.", "conformer.layer_norm.", "conformer.layers.",
)  # fmt: skip
FEATURE = "melspec_2048"


def read_muq_config(folder: Path) -> MuqConfig:
    """Sizes and constants of a published MuQ's `config.json`.

    Raises:
        CheckpointError: settings that change its arithmetic and are not supported, all listed.
    """
    values = read_config(folder)
    file = folder / "config.json"
    if not isinstance(values.get("w2v2_config"), Mapping) or "encoder_dim" not in values:
        raise CheckpointError(
            f"{file} is no MuQ configuration: it lacks encoder_dim or w2v2_config; "
            f"expected the files of {PUBLISHED_MUQ}"
        )
    try:
        inner = Wav2Vec2ConformerConfig(**values["w2v2_config"])
    except Exception as error:  # transformers' validation raises several types
        raise CheckpointError(f"{file}: w2v2_config cannot be read: {error}") from error
    fixed = {
        "features": (values.get("features", [FEATURE]), [FEATURE]),
        "hop_length": (values.get("hop_length", HOP), HOP),
        "n_mels": (values.get("n_mels", MELS), MELS),
        "label_rate": (values.get("label_rate", 25), 25),
        "position_embeddings_type": (inner.position_embeddings_type, "rotary"),
    }
    odd = [f"{name} {found!r} (expected {want!r})" for name, (found, want) in fixed.items()
           if found != want]  # fmt: skip
    if odd:
        raise CheckpointError(f"{file} sets {'; '.join(odd)}: not supported")
    stat = values.get("stat") or {}
    try:
        return MuqConfig(
            width=values["encoder_dim"],
            depth=values.get("encoder_depth", MuqConfig.depth),
            heads=inner.num_attention_heads,
            feed_forward=inner.intermediate_size,
            activation=inner.hidden_act,
            kernel=inner.conv_depthwise_kernel_size,
            channels=values.get("conv_dim", MuqConfig.channels),
            rotary_base=inner.rotary_embedding_base,
            norm_eps=inner.layer_norm_eps,
            mean=stat.get(f"{FEATURE}_mean", MuqConfig.mean),
            std=stat.get(f"{FEATURE}_std", MuqConfig.std),
        )
    except (UsageError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def split_muq(file: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """MuQ's tensors without their prefix, and the rest of a file's.

    Raises:
        CheckpointError: no MuQ, or several, in the file.
    """
    prefix = prefix_before(ANCHOR, file, content, "no MuQ")
    rest = {name: value for name, value in content.items() if not name.startswith(prefix)}
    return without_prefix(prefix, content), rest


def load_muq(file: Path, encoder: MuqEncoder, state: Mapping[str, Tensor]) -> None:
    """Put a file's tensors into an encoder; what it does not use is left out.

    Raises:
        CheckpointError: a missing or misshapen tensor, or rotary frequencies of another base.
    """
    load_checked(encoder, file, state, UNUSED)
    _check_frequencies(file, state, encoder.config)


def _check_frequencies(file: Path, state: Mapping[str, Tensor], config: MuqConfig) -> None:
    found = state.get("conformer.embed_positions.inv_freq")
    if found is None:
        return
    size = config.width // config.heads
    wanted = config.rotary_base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    if found.shape != wanted.shape or not torch.allclose(found.double(), wanted, rtol=1e-2):
        raise CheckpointError(
            f"{file}: conformer.embed_positions.inv_freq are not the rotary frequencies of base "
            f"{config.rotary_base:g} for {config.heads} heads, which config.json states"
        )
