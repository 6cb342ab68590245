"""Readers of the published layouts: MERT folders and APEX predictors. No remote code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import HubertConfig

from apex_reward.errors import CheckpointError
from apex_reward.model.config import MERT_95M
from apex_reward.model.files import check_tensors, read_config, read_weights, weight_file
from apex_reward.model.pooling import LayerPooling
from apex_reward.model.predictor import Predictor
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS

# The first tensor of a predictor: what stands before it is the prefix a wrapper added.
ANCHOR = "shared.0.block.0.weight"
# torch renamed weight normalisation; files from before hold the old names.
OLD_NAMES = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}
# Settings of the MERT family that change its arithmetic and that HuBERT does not have. Not
# `attention_relax`: it scales the logits down and up again around their maximum, which a softmax
# does not notice.
UNSUPPORTED = {
    "deepnorm": lambda value: bool(value),
    "feature_extractor_cqt": lambda value: bool(value),
}


@dataclass(frozen=True)
class PublishedPredictor:
    """A predictor as published: tensors under the published names, and its condition."""

    state: dict[str, Tensor]
    pooling: dict[str, Tensor]
    task: str
    shared: int
    width: int
    mode: str | None
    loss: str | None


def read_predictor(path: Path) -> PublishedPredictor:
    """Read `best_model.pt`, or the weights of a hub repository in its layout.

    Any common prefix is stripped. `aggregator.weight` and `.bias` are taken where present.

    Raises:
        CheckpointError: no predictor in the file, or a missing, extra or misshapen tensor.
    """
    file = weight_file(path)
    content = read_weights(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    state, pooling = _split(file, content.get("model_state", content))
    present = [head for head in HEADS if any(k.startswith(f"branch_{head}.") for k in state)]
    task = "full" if any(head in AESTHETIC_HEADS for head in present) else "popularity"
    shared = len({name.split(".")[1] for name in state if name.startswith("shared.")})
    for key, value in (("task", task), ("shared", shared)):
        if content.get(key, value) != value:
            raise CheckpointError(
                f"{file} says {key} {content[key]!r}, but its tensors are {value!r}"
            )
    if shared not in (2, 3):
        raise CheckpointError(f"{file} has {shared} trunk layers; the published ones are 2 or 3")
    anchor = state[ANCHOR]
    # A misshapen first tensor is reported against the published width.
    width = anchor.shape[1] if isinstance(anchor, Tensor) and anchor.ndim == 2 else 768
    check_tensors(file, state, Predictor(width, task, shared).state_dict())
    if pooling:
        check_tensors(file, pooling, LayerPooling().state_dict())
    return PublishedPredictor(
        state, pooling, task, shared, width, content.get("mode"), content.get("loss")
    )


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
    values = read_config(folder)
    if values.get("model_type") not in ("mert_model", "hubert"):
        raise CheckpointError(
            f"{folder / 'config.json'} describes a {values.get('model_type')!r}; "
            "expected 'mert_model' or 'hubert'"
        )
    odd = [key for key, wrong in UNSUPPORTED.items() if wrong(values.get(key))]
    if odd:
        raise CheckpointError(f"{folder / 'config.json'} sets {', '.join(odd)}: not supported")
    rate = values.get("sample_rate", 24_000)
    if rate != 24_000:
        raise CheckpointError(f"{folder / 'config.json'} has sample_rate {rate}; expected 24000")
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
