"""Folders of `config.json` and `model.safetensors`: written whole, read strictly.

What every model that is not a transformers model saves and loads itself with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.files import read_config, read_weights, weight_file


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
