"""MuQ-Eval's files: our own folder and the published state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import CheckpointError
from apex_reward.model.checkpoint import placed
from apex_reward.model.encoders.muq import MuqConfig
from apex_reward.model.encoders.muq_files import (
    ANCHOR,
    PUBLISHED_MUQ,
    load_muq,
    read_muq_config,
    split_muq,
)
from apex_reward.model.files import (
    HUB_OPTIONS,
    check_tensors,
    in_float32,
    local_path,
    read_config,
    read_weights,
    weight_file,
)
from apex_reward.model.folder import read_model, write_folder
from apex_reward.rewards.foreign.muq_eval import PUBLISHED, MuQEval

MODEL_TYPE = "apex_reward_muq_eval"
# Published prefixes and ours.
NAMES = {"encoder.pooling.": "pooling.", "heads.": "opinions."}
ATTENTION, INNER = "encoder.pooling.attention.0.weight", "heads.MI.mlp.0.weight"


def load_muq_eval(name: str | Path, encoder: str | Path | None, **options: Any) -> MuQEval:
    """`MuQEval.from_pretrained`: see there."""
    hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    short = str(name) == MuQEval.name and not Path(name).exists()
    path = local_path(PUBLISHED if short else name, **hub)
    ours = (path / "config.json").is_file() and read_config(path).get("model_type") == MODEL_TYPE
    if not ours:
        return compose_muq_eval(path, encoder, **options, **hub)
    model = read_model(
        path, MODEL_TYPE,
        lambda c: _empty(MuqConfig(**c["muq"]), c["attention"], c["inner"]),
    )  # fmt: skip
    return placed(model, **options)


def compose_muq_eval(predictor: str | Path, encoder: str | Path | None, **options: Any) -> MuQEval:
    """`MuQEval.from_published`: see there."""
    hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    file = weight_file(local_path(predictor, **hub))
    content = read_weights(file)
    own = _own_tensors(file, content)
    other = {name: value for name, value in content.items() if name not in own}
    holds_muq = any(str(name).endswith(ANCHOR) for name in other)
    folder = None if encoder is None and holds_muq else local_path(encoder or PUBLISHED_MUQ, **hub)
    config = MuqConfig() if folder is None else read_muq_config(folder)
    model = _empty(config, own[ATTENTION].shape[0], own[INNER].shape[0])
    source = file if folder is None or holds_muq else weight_file(folder)
    muq, unknown = split_muq(source, other if holds_muq else read_weights(source))
    if not holds_muq:
        unknown = other
    expected = {
        name: value
        for name, value in _published(model.state_dict()).items()
        if name.startswith(tuple(NAMES))
    }
    check_tensors(file, {**own, **unknown}, expected)
    load_muq(source, model.encoder, muq)
    model.load_state_dict(in_float32(_ours(own)), assign=True, strict=False)
    return placed(model, **options)


def save_muq_eval(model: MuQEval, folder: str | Path) -> None:
    """`MuQEval.save_pretrained`: see there."""
    config = {
        "model_type": MODEL_TYPE,
        "muq": asdict(model.encoder.config),
        **model.inner_widths,
    }
    write_folder(folder, config, model.state_dict())


def _own_tensors(file: Path, content: Any) -> dict[str, Tensor]:
    """Pooling and outputs under their published names, enough of them to know their sizes."""
    found = content if isinstance(content, Mapping) else {}
    own = {name: value for name, value in found.items() if str(name).startswith(tuple(NAMES))}
    lacking = [name for name in (ATTENTION, INNER) if getattr(own.get(name), "ndim", 0) != 2]
    if lacking:
        raise CheckpointError(
            f"{file} is no MuQ-Eval A1 as its authors describe it: expected matrices "
            f"{' and '.join(lacking)} in a plain state dict (model_state_dict.pt)"
        )
    return own


def _empty(config: MuqConfig, attention: int, inner: int) -> MuQEval:
    with torch.device("meta"):
        return MuQEval(config, attention, inner)


def _published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _renamed(state, {ours: published for published, ours in NAMES.items()})


def _ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _renamed(state, NAMES)


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        old = next((prefix for prefix in names if name.startswith(prefix)), "")
        renamed[names.get(old, "") + name.removeprefix(old)] = value
    return renamed
