"""Readers of the published MuQ files: sizes from `config.json`, tensors under our names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Wav2Vec2ConformerConfig

from apex_reward.errors import CheckpointError, UsageError, listed
from apex_reward.model.encoders.muq import HOP, MELS, MuqConfig, MuqEncoder
from apex_reward.model.files import (
    check_tensors,
    in_float32,
    read_config,
    read_weights,
    weight_file,
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


def read_muq(folder: Path, layer: int) -> MuqEncoder:
    """A MuQ up to `layer` from a folder in the layout of OpenMuQ/MuQ-large-msd-iter.

    Raises:
        CheckpointError: another kind of model, or a missing or misshapen tensor.
    """
    encoder = empty_muq(read_muq_config(folder), layer)
    file = weight_file(folder)
    state, _ = split_muq(file, read_weights(file))
    load_muq(file, encoder, state)
    return encoder


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


def empty_muq(config: MuqConfig, layer: int) -> MuqEncoder:
    """A MuQ without weights, which `load_muq` gives it: nothing is drawn and thrown away."""
    with torch.device("meta"):
        return MuqEncoder(config, layer)


def split_muq(file: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """MuQ's tensors without their prefix, and the rest of a file's.

    Raises:
        CheckpointError: no MuQ, or several, in the file.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    anchors = [name for name in content if str(name).endswith(ANCHOR)]
    if len(anchors) != 1:
        raise CheckpointError(
            f"{file} is no MuQ: expected one tensor named ...{ANCHOR}, found {len(anchors)}"
        )
    prefix = anchors[0].removesuffix(ANCHOR)
    own = {name: value for name, value in content.items() if name.startswith(prefix)}
    rest = {name: value for name, value in content.items() if name not in own}
    return {name.removeprefix(prefix): value for name, value in own.items()}, rest


def load_muq(file: Path, encoder: MuqEncoder, state: Mapping[str, Tensor]) -> None:
    """Put a file's tensors into an encoder; what it does not use is left out.

    Raises:
        CheckpointError: a missing or misshapen tensor, or rotary frequencies of another base.
    """
    expected = encoder.state_dict()
    needed = {name: value for name, value in state.items() if name in expected}
    check_tensors(file, needed, expected)
    _check_frequencies(file, state, encoder.config)
    report_extra(file, (n for n in state if n not in expected and not n.startswith(UNUSED)))
    encoder.load_state_dict(in_float32(needed), assign=True)


def report_extra(file: Path, names: Iterable[str]) -> None:
    """Warn of tensors that nothing here knows; they are left out."""
    if extra := sorted(names):
        warnings.warn(f"{file} also holds {listed(extra)}: not used", stacklevel=3)


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
