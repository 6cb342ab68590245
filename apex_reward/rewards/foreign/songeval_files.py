"""SongEval's files: our own folder, the published head and MuQ, and from these to that."""

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
    PUBLISHED_MUQ,
    load_muq,
    read_muq_config,
    report_extra,
    split_muq,
)
from apex_reward.model.files import (
    HUB_OPTIONS,
    check_tensors,
    in_float32,
    local_path,
    read_weights,
    weight_file,
)
from apex_reward.model.folder import read_model, write_folder
from apex_reward.rewards.foreign.songeval import SongEval

MODEL_TYPE = "apex_reward_songeval"
PUBLISHED_HEAD = Path("ckpt") / "model.safetensors"
FIRST = "ffd.0.weight"
HOW = (
    "SongEval's files are not on the hub in one piece: `git clone "
    "https://github.com/ASLP-lab/SongEval`, then `apex-reward import --kind songeval --predictor "
    f"SongEval/ckpt/model.safetensors --encoder {PUBLISHED_MUQ} --output songeval`, and name that "
    "folder (songeval:FOLDER)"
)


def load_songeval(name: str | Path, encoder: str | Path | None, **options: Any) -> SongEval:
    """`SongEval.from_pretrained`: see there."""
    hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    if str(name) == SongEval.name and not Path(name).exists():
        raise CheckpointError(HOW)
    path = local_path(name, **hub)
    if path.is_file() or not (path / "config.json").is_file():
        return compose_songeval(path, encoder, **options, **hub)
    model = read_model(path, MODEL_TYPE, lambda c: _empty(MuqConfig(**c["muq"]), c["feed_forward"]))
    return placed(model, **options)


def compose_songeval(predictor: str | Path, encoder: str | Path | None, **options: Any) -> SongEval:
    """`SongEval.from_published`: see there."""
    hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    file = _head_file(local_path(predictor, **hub))
    head = _read_head(file)
    folder = local_path(encoder or PUBLISHED_MUQ, **hub)
    config = read_muq_config(folder)
    if head[FIRST].shape[1] != config.width:
        raise CheckpointError(
            f"{file}: {FIRST} takes hidden states of width {head[FIRST].shape[1]}, but the "
            f"encoder {folder} gives {config.width}"
        )
    model = _empty(config, head[FIRST].shape[0])
    expected = model.head.state_dict()
    needed = {name: value for name, value in head.items() if name in expected}
    check_tensors(file, needed, expected)
    report_extra(file, head.keys() - expected.keys())
    model.head.load_state_dict(in_float32(needed), assign=True)
    weights = weight_file(folder)
    state, _ = split_muq(weights, read_weights(weights))
    load_muq(weights, model.encoder, state)
    return placed(model, **options)


def save_songeval(model: SongEval, folder: str | Path) -> None:
    """`SongEval.save_pretrained`: see there."""
    config = {
        "model_type": MODEL_TYPE,
        "muq": asdict(model.encoder.config),
        "feed_forward": model.head.ffd[0].out_features,
    }
    write_folder(folder, config, model.state_dict())


def _empty(config: MuqConfig, feed_forward: int) -> SongEval:
    # Nothing is drawn at random only to be thrown away.
    with torch.device("meta"):
        return SongEval(config, feed_forward)


def _head_file(path: Path) -> Path:
    if path.is_dir() and (path / PUBLISHED_HEAD).is_file():
        return path / PUBLISHED_HEAD
    return weight_file(path)


def _read_head(file: Path) -> dict[str, Tensor]:
    """The head's tensors without a common prefix."""
    content = read_weights(file)
    found = content if isinstance(content, Mapping) else {}
    names = [name for name in found if str(name).endswith(FIRST)]
    if len(names) != 1 or getattr(found[names[0]], "ndim", 0) != 2:
        raise CheckpointError(
            f"{file} is no SongEval head: expected one matrix named ...{FIRST}, found {len(names)}"
        )
    prefix = names[0].removesuffix(FIRST)
    return {name.removeprefix(prefix): value for name, value in found.items()}
