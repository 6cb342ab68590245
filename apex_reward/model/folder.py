"""Folders of `config.json` and `model.safetensors`: written whole, read strictly.

What every model that is not a transformers model saves and loads itself with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.files import (
    check_tensors,
    in_float32,
    read_config,
    read_weights,
    weight_file,
)

Model = TypeVar("Model", bound=nn.Module)


def check_unused(folder: str | Path) -> Path:
    """The folder's path; raises UsageError where something is there already."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{folder} is there already; name a new or empty folder")
    return path


def write_folder(
    folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write both files, each whole under a temporary name first; a new folder appears at once."""
    from safetensors.torch import save_file

    target = Path(folder)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, temporary / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(dict(config), indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        if not target.exists():
            temporary.replace(target)
            return
        for name in ("model.safetensors", "config.json"):
            (temporary / name).replace(target / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_folder(folder: Path, model_type: str) -> tuple[dict[str, Any], Path, dict[str, Tensor]]:
    """The configuration, the file of weights and its tensors.

    Raises:
        CheckpointError: no such folder, another kind of model, or a file that cannot be read.
    """
    config = read_config(folder)
    if config.get("model_type") != model_type:
        raise CheckpointError(
            f"{folder / 'config.json'} describes a {config.get('model_type')!r}; "
            f"expected {model_type!r}"
        )
    file = weight_file(folder)
    return config, file, read_weights(file)


def read_model(folder: Path, model_type: str, build: Callable[[Mapping[str, Any]], Model]) -> Model:
    """The model of a folder of ours, in float32.

    Args:
        model_type: what its configuration must say it is.
        build: an empty model of a configuration.

    Raises:
        CheckpointError: as `read_folder`; a setting or tensor missing, extra or misshapen.
    """
    config, file, tensors = read_folder(folder, model_type)
    try:
        model = build(config)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks or adds a setting: {error}"
        ) from error
    check_tensors(file, tensors, model.state_dict())
    model.load_state_dict(in_float32(tensors), assign=True)
    return model
