"""Readers of the published layouts: MERT folders and APEX predictors. No remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import HubertConfig

from apex_reward.errors import CheckpointError
from apex_reward.model.config import MERT_95M, ApexConfig
from apex_reward.model.files import (
    check_tensors,
    load_checked,
    read_config,
    read_weights,
    weight_file,
)
from apex_reward.model.predictor import (
    Familiarity,
    LayerPooling,
    Predictor,
    PredictorEnsemble,
    StudentHeads,
)
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS

# The first tensor of a predictor: the text before it in a name is the prefix that a wrapper added.
ANCHOR = "shared.0.block.0.weight"
# torch renamed weight normalisation; files from before have the old names.
OLD_NAMES = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}
# Settings of the MERT family that change its arithmetic and that HuBERT lacks. Not
# `attention_relax`: it scales the logits down and up again around their maximum, and the softmax
# stays the same.
UNSUPPORTED = ("deepnorm", "feature_extractor_cqt")


class Parts(NamedTuple):
    """A model without its encoder."""

    config: ApexConfig
    predictor: Predictor | PredictorEnsemble | StudentHeads
    pooling: LayerPooling
    familiar: Familiarity | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The modules under their names in a model."""
        found = {"pooling": self.pooling, "predictor": self.predictor, "familiar": self.familiar}
        return {name: module for name, module in found.items() if module is not None}


def untrained_parts(config: ApexConfig) -> Parts:
    """Parts of the configured shapes, in float32 and in eval mode."""
    with torch.device("meta"):
        familiar = Familiarity(config.width) if config.familiar else None
        predictor: Any = config.predictor().eval()
        return Parts(config, predictor, LayerPooling(len(config.layers)), familiar)


def read_predictor(path: Path) -> Parts:
    """Read `best_model.pt`, or the weights of a hub repository in its layout.

    Any common prefix is removed. `aggregator.weight` and `.bias` are the pooling where present.

    Raises:
        CheckpointError: no predictor in the file, or a missing, extra or misshapen tensor.
    """
    file = weight_file(path)
    content = read_weights(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    state, pooling = _split(file, content.get("model_state", content))
    aesthetic = tuple(f"branch_{head}." for head in HEADS if head in AESTHETIC_HEADS)
    task = "full" if any(name.startswith(aesthetic) for name in state) else "popularity"
    shared = len({name.split(".")[1] for name in state if name.startswith("shared.")})
    for key, value in (("task", task), ("shared", shared)):
        if content.get(key, value) != value:
            raise CheckpointError(
                f"{file} states {key} {content[key]!r}, but its tensors are {value!r}"
            )
    if shared not in (2, 3):
        raise CheckpointError(f"{file} has {shared} trunk layers; the published ones are 2 or 3")
    anchor = state[ANCHOR]
    # A misshapen first tensor is reported against the published width.
    width = anchor.shape[1] if isinstance(anchor, Tensor) and anchor.ndim == 2 else 768
    # The width is an encoder's setting; the encoder itself is not known yet.
    encoder = {} if width == 768 else {"hidden_size": width}
    parts = untrained_parts(ApexConfig(encoder=encoder, task=task, shared=shared))
    load_checked(parts.predictor, file, state)
    load_checked(parts.pooling, file, pooling or LayerPooling().state_dict())
    return parts


def _split(file: Path, tensors: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Predictor and layer-pooling tensors, without their prefixes."""
    names = [name for name in tensors if str(name).endswith(ANCHOR)] if tensors else []
    if len(names) != 1:
        raise CheckpointError(
            f"{file} is not an APEX predictor: expected one tensor named ...{ANCHOR}, "
            f"found {len(names)}"
        )
    prefix = names[0].removesuffix(ANCHOR)
    state: dict[str, Tensor] = {}
    pooling: dict[str, Tensor] = {}
    for name, value in tensors.items():
        head, _, last = name.rpartition(".")
        if head.split(".")[-1] == "aggregator":
            pooling[last] = value
        else:
            state[name.removeprefix(prefix)] = value
    return state, pooling


def read_encoder_config(folder: Path) -> dict[str, Any]:
    """HuBERT settings of a MERT folder that differ from MERT-v1-95M's.

    Raises:
        CheckpointError: not a MERT or HuBERT configuration, or a setting that HuBERT lacks.
    """
    values, file = read_config(folder), folder / "config.json"
    if values.get("model_type") not in ("mert_model", "hubert"):
        raise CheckpointError(
            f"{file} describes a {values.get('model_type')!r}; expected 'mert_model' or 'hubert'"
        )
    if odd := [key for key in UNSUPPORTED if values.get(key)]:
        raise CheckpointError(f"{file} sets {', '.join(odd)}: not supported")
    rate = values.get("sample_rate", 24_000)
    if rate != 24_000:
        raise CheckpointError(f"{file} has sample_rate {rate}; expected 24000")
    base = HubertConfig(**MERT_95M).to_dict()
    # Names of files and classes, not of arithmetic.
    ignored = {"architectures", "model_type", "transformers_version", "dtype", "tokenizer_class"}
    return {
        key: values[key]
        for key in base.keys() - ignored
        if key in values and not key.startswith("_") and _plain(values[key]) != _plain(base[key])
    }


def read_encoder_state(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """MERT's tensors under today's names, checked against the encoder's own.

    Raises:
        CheckpointError: a missing, extra or misshapen tensor.
    """
    file = weight_file(path)
    content = read_weights(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    state = {}
    for name, value in content.items():
        for old, new in OLD_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        state[name] = value
    check_tensors(file, state, expected)
    return state


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
