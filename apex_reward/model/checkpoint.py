"""Load and save: whole models, predictor-only folders, and compositions of published files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import HubertConfig

from apex_reward.errors import CheckpointError, UsageError, listed
from apex_reward.model.config import MERT_95M, ApexConfig
from apex_reward.model.files import (
    encoder_path,
    hub_options,
    load_checked,
    local_path,
    prefix_before,
    read_config,
    read_weights,
    weight_file,
    without_prefix,
    write_tensors,
)
from apex_reward.model.precision import dtype_option, one_device
from apex_reward.model.predictor import (
    Familiarity,
    LayerPooling,
    Predictor,
    PredictorEnsemble,
    StudentHeads,
    members_of,
)
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS

ENCODER = "encoder."
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
# Settings that are names of files and classes, not of arithmetic.
NAMES = {"architectures", "model_type", "transformers_version", "dtype", "tokenizer_class"}


# Options of transformers' own loading, which this one has no use for.
LOADING = {
    "adapter_kwargs", "code_revision", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors",
}  # fmt: skip


class Parts(NamedTuple):
    """A model without its encoder."""

    config: ApexConfig
    predictor: Predictor | PredictorEnsemble | StudentHeads
    pooling: LayerPooling
    familiar: Familiarity | None = None

    @classmethod
    def untrained(cls, config: ApexConfig) -> Parts:
        """Parts of the configured shapes, on the meta device and in eval mode."""
        with torch.device("meta"):
            familiar = Familiarity(config.width) if config.familiar else None
            pooling = LayerPooling(len(config.layers))
            return cls(config, config.predictor().eval(), pooling, familiar)

    @property
    def modules(self) -> nn.ModuleDict:
        """The modules under their names in a model."""
        found = {"pooling": self.pooling, "predictor": self.predictor, "familiar": self.familiar}
        return nn.ModuleDict({name: part for name, part in found.items() if part is not None})


def load_model(cls: Any, name: str | Path, encoder: str | Path | None, **kwargs: Any) -> Any:
    """`ApexReward.from_pretrained`: see there."""
    hub = hub_options(kwargs)
    path = local_path(name, **hub)
    kwargs.pop("config", None)  # AutoModel passes what it read in the folder
    parts = load_parts(path)
    named = parts.config.encoder_name
    if encoder is None and not _is_native(path):
        named = (read_config(path).get("mert_model_name") if path.is_dir() else None) or named
    elif encoder is None and any(n.startswith(ENCODER) for n in read_weights(weight_file(path))):
        encoder, kwargs = path, {"encoder_name": named, **kwargs}
    elif encoder is None and named is None:
        raise CheckpointError(
            f"{path} holds no encoder and its config.json names none; pass encoder= "
            "(--encoder on the command line)"
        )
    return _composed(cls, parts, encoder or named, hub, str(name), **kwargs)


def _composed(
    cls: Any, parts: Parts, encoder: Any, hub: dict[str, Any], origin: str,
    device_map: Any = None, **overrides: Any,
) -> Any:  # fmt: skip
    """A whole model from a predictor and an encoder that is read elsewhere.

    Args:
        origin: what the predictor was loaded from.
        overrides: fields of the configuration, `dtype`, and options of transformers.

    Raises:
        UsageError: another option.
        CheckpointError: parts that do not fit each other.
    """
    dtype = dtype_option(overrides, torch.float32)
    known = {*inspect.signature(ApexConfig.__init__).parameters, "attn_implementation"}
    used = {name: value for name, value in overrides.items() if name in known}
    unknown = [n for n in overrides.keys() - known - LOADING if not n.startswith("_")]
    if unknown:
        raise UsageError(f"a model is loaded without the option {listed(unknown)}")
    folder = encoder_path(encoder, **hub)
    values = {**parts.config.to_dict(), "encoder_name": str(encoder)}
    native = _is_native(folder)
    if native:
        own = ApexConfig.from_pretrained(folder)
        values |= {n: getattr(own, n) for n in ("encoder", "sample_rate", "segment_seconds")}
    else:
        values["encoder"] = read_encoder_config(folder)
    config = ApexConfig.from_dict({**values, **used})
    config.name_or_path = origin
    if config.width != parts.config.width:
        raise CheckpointError(
            "the predictor's shared.0.block.0.weight takes embeddings of width "
            f"{parts.config.width}, but the encoder {encoder} gives {config.width}"
        )
    with torch.device("meta"):
        model = cls(config)
    if native:
        file = weight_file(folder)
        load_checked(model.encoder, file, without_prefix(ENCODER, read_weights(file)))
    else:
        load_mert(model.encoder, folder)
    for name, module in parts.modules.items():
        setattr(model, name, module)
    nn.Module.to(model, one_device(device_map))
    model.set_encoder_dtype(dtype)
    return model


def load_parts(path: str | Path) -> Parts:
    """Predictor or ensemble, layer pooling and familiarity without an encoder, in eval mode.

    Args:
        path: a folder of `save_predictor` or `save_pretrained`, `apex-tiny`, or a published
            `best_model.pt` (or a folder or hub id that holds one).

    Raises:
        CheckpointError: as `ApexReward.from_pretrained`.
    """
    path = local_path(path)
    if not _is_native(path):
        return read_predictor(path)
    parts = Parts.untrained(ApexConfig.from_pretrained(path))
    file = weight_file(path)
    tensors = {n: value for n, value in read_weights(file).items() if not n.startswith(ENCODER)}
    load_checked(parts.modules, file, tensors)
    return parts


def read_predictor(path: Path) -> Parts:
    """Read `best_model.pt`, or the weights of a hub repository in its layout.

    Any common prefix is removed. `aggregator.weight` and `.bias` are the pooling where present.

    Raises:
        CheckpointError: no predictor in the file, or a missing, extra or misshapen tensor.
    """
    file = weight_file(path)
    content = read_weights(file)
    stated = content if isinstance(content, dict) else {}
    tensors = stated.get("model_state", content)
    prefix = prefix_before(ANCHOR, file, tensors, "not an APEX predictor")
    state, pooling = {}, {}
    for name, value in tensors.items():
        owner, _, last = name.rpartition(".")
        if owner.split(".")[-1] == "aggregator":
            pooling[last] = value
        else:
            state[name.removeprefix(prefix)] = value
    aesthetic = tuple(f"branch_{head}." for head in HEADS if head in AESTHETIC_HEADS)
    task = "full" if any(name.startswith(aesthetic) for name in state) else "popularity"
    shared = len({name.split(".")[1] for name in state if name.startswith("shared.")})
    for key, value in (("task", task), ("shared", shared)):
        if stated.get(key, value) != value:
            raise CheckpointError(
                f"{file} states {key} {stated[key]!r}, but its tensors are {value!r}"
            )
    anchor = state[ANCHOR]
    # A misshapen first tensor is reported against the published width.
    width = anchor.shape[1] if isinstance(anchor, Tensor) and anchor.ndim == 2 else 768
    # The width is an encoder's setting; the encoder itself is not known yet.
    encoder = {} if width == 768 else {"hidden_size": width}
    parts = Parts.untrained(ApexConfig(encoder=encoder, task=task, shared=shared))
    load_checked(parts.predictor, file, state)
    load_checked(parts.pooling, file, pooling or LayerPooling().state_dict())
    return parts


def save_predictor(
    folder: str | Path,
    config: ApexConfig,
    predictor: Predictor | PredictorEnsemble,
    pooling: LayerPooling,
    familiar: Familiarity | None = None,
) -> None:
    """Write a `save_pretrained` folder without the encoder, which `config.encoder_name` names.

    The configuration that is written states how many members there are and whether the statistics
    of the training songs are there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = ApexConfig.from_dict(config.to_dict())
    config.members, config.familiar = len(members_of(predictor)), familiar is not None
    parts = Parts(config, predictor, pooling, familiar)
    write_tensors(folder / "model.safetensors", parts.modules.state_dict())
    config.save_pretrained(folder)


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
    if (rate := values.get("sample_rate", 24_000)) != 24_000:
        raise CheckpointError(f"{file} has sample_rate {rate}; expected 24000")
    base = HubertConfig(**MERT_95M).to_dict()
    return {
        key: values[key]
        for key in base.keys() - NAMES
        if key in values and not key.startswith("_") and _plain(values[key]) != _plain(base[key])
    }


def load_mert(encoder: nn.Module, folder: Path) -> None:
    """Load a MERT folder's tensors, under old or today's names, into an encoder.

    Raises:
        CheckpointError: a missing, extra or misshapen tensor.
    """
    file = weight_file(folder)
    content = read_weights(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    for old, new in OLD_NAMES.items():
        content = {
            name.removesuffix(old) + new if name.endswith(old) else name: value
            for name, value in content.items()
        }
    load_checked(encoder, file, content)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_native(path: Path) -> bool:
    return path.is_dir() and read_config(path).get("model_type") == ApexConfig.model_type
