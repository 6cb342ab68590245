"""Find checkpoints on disk or on the hub, and read tensors without executing anything."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import CheckpointError, listed

EMBEDDED_MODEL = "apex-tiny"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "demo" / "apex_tiny"
# In this order: where a folder holds several, the plain ones come first.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model_state_dict.pt", "best_model.pt")
INDEX, SHARDS = "model.safetensors.index.json", "model-*.safetensors"
SETTINGS = [
    "config.json", INDEX, "preprocessor_config.json", "processor_config.json", "tokenizer*.json",
    "vocab.*", "merges.txt", "normalizer.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json",
]  # fmt: skip
HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """What a call's options say to the hub, taken out of them."""
    return {key: options.pop(key) for key in HUB_OPTIONS if key in options}


def local_path(name: str | Path, **hub_options: Any) -> Path:
    """A local file or folder for a path, a hub id (downloaded) or `apex-tiny` (embedded).

    Raises:
        CheckpointError: nothing there, or the hub cannot be reached.
    """
    if str(name) == EMBEDDED_MODEL:
        return EMBEDDED_FOLDER
    path = Path(name).expanduser()
    if path.exists():
        return path
    if isinstance(name, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{name} does not exist; expected a file, a folder or a hub id")
    return _download(name, **hub_options)


def _download(hub_id: str, **options: Any) -> Path:
    from huggingface_hub import list_repo_files, snapshot_download

    wanted = SETTINGS + list(WEIGHT_FILES)
    try:
        if not options.get("local_files_only"):
            asked = {name: options[name] for name in ("revision", "token") if name in options}
            wanted = wanted_files(list_repo_files(hub_id, **asked))
    except Exception:  # without a network the cache may hold the files
        options["local_files_only"] = True
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted, **options))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CheckpointError(
            f"{hub_id} is not a local folder and could not be fetched from the hub "
            f"({type(error).__name__}); check the name and the network, or name a local folder "
            "(--model FOLDER on the command line); `apex-reward demo` works offline"
        ) from error


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files of a repository that loading needs: settings, and one form of the weights.

    A folder `clap` inside it is a model of its own.

    >>> wanted_files(["README.md", "config.json", "model.safetensors", "pytorch_model.bin"])
    ['config.json', 'model.safetensors']
    """
    found: list[str] = []
    for folder in ("", "clap/"):
        inside = [n.removeprefix(folder) for n in names if n.startswith(folder)]
        inside = [name for name in inside if "/" not in name]
        weights = [name for name in inside if fnmatch(name, SHARDS)] if INDEX in inside else []
        weights = weights or [name for name in WEIGHT_FILES if name in inside][:1]
        settings = [n for n in inside if any(fnmatch(n, pattern) for pattern in SETTINGS)]
        found += [folder + name for name in [*settings, *weights]]
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder; raises CheckpointError where it is missing or not JSON."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected a model folder") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return values


def weight_file(path: Path) -> Path:
    """The file of weights: `path` itself, or the first known name in the folder."""
    if path.is_file():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} holds no weights; expected one of {', '.join(WEIGHT_FILES)}")


def read_weights(path: Path) -> Any:
    """What a weight file holds: a state dict, or the dict a training script saved around it.

    Raises:
        CheckpointError: not a checkpoint, damaged, or a pickle with code in it (never run).
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no plain file of tensors: it is damaged, or a pickle that would run code; "
            "it was not run. Save it again as tensors only (safetensors or torch.save of a "
            "state dict)"
        ) from error
    except Exception as error:  # zip, JSON, EOF and struct errors, by format and version
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from error


def in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with every float as float32, whatever the file holds."""
    return {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def check_tensors(file: Path, found: dict[str, Any], expected: dict[str, Tensor]) -> None:
    """Every expected tensor exactly once and in its shape, or one CheckpointError listing which."""
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing: {listed(missing)}")
    if extra := [name for name in found if name not in expected]:
        problems.append(f"not expected: {listed(extra)}")
    for name in sorted(expected.keys() & found.keys()):
        value, shape = found[name], tuple(expected[name].shape)
        if not isinstance(value, Tensor):
            problems.append(f"{name} is a {type(value).__name__}, not a tensor")
        elif tuple(value.shape) != shape:
            problems.append(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise CheckpointError(f"{file} does not fit the model:\n  " + "\n  ".join(problems))
