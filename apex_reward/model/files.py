"""Model files: find them on disk or on the hub, read tensors without running code, write folders.

A folder of `config.json` and `model.safetensors` is written whole and read strictly.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apex_reward.errors import CheckpointError, DataError, UsageError, listed
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import read_json

Model = TypeVar("Model", bound=nn.Module)
# Models that are part of the package, and their folders.
DEMO = Path(__file__).parent.parent / "demo"
EMBEDDED = {"apex-tiny": DEMO / "apex_tiny", "apex-tiny-fast": DEMO / "apex_tiny_fast"}
# A folder with several of these is read from the first one.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model_state_dict.pt", "best_model.pt")
INDEX, SHARDS = "model.safetensors.index.json", "model-*.safetensors"
SETTINGS = [
    "config.json", INDEX, "preprocessor_config.json", "processor_config.json", "tokenizer*.json",
    "vocab.*", "merges.txt", "normalizer.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.*", "rubrics.json",
]  # fmt: skip
HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the hub's options from a call's options and return them."""
    return {key: options.pop(key) for key in HUB_OPTIONS if key in options}


def local_path(name: str | Path, **hub: Any) -> Path:
    """A local file or folder for a path, a hub id (downloaded) or an embedded model.

    Args:
        hub: `revision`, `cache_dir`, `token`, `force_download`, `local_files_only`.

    Raises:
        UsageError: another option.
        CheckpointError: nothing there, or the hub cannot be reached.
    """
    if wrong := sorted(hub.keys() - set(HUB_OPTIONS)):
        raise UsageError(f"{name} is loaded without the option {', '.join(wrong)}")
    if str(name) in EMBEDDED:
        return EMBEDDED[str(name)]
    path = Path(name).expanduser()
    if path.exists():
        return path
    if isinstance(name, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{name} does not exist; expected a file, a folder or a hub id")
    wanted = SETTINGS + list(WEIGHT_FILES)
    try:
        if not hub.get("local_files_only"):
            asked = {key: hub[key] for key in ("revision", "token") if key in hub}
            wanted = wanted_files(huggingface_hub.list_repo_files(name, **asked))
    except Exception:  # without a network the cache may hold the files
        hub["local_files_only"] = True
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, **hub))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CheckpointError(
            f"{name} is not a local folder and could not be fetched from the hub "
            f"({type(error).__name__}); check the name and the network, or name a local folder "
            "(--model FOLDER on the command line); `apex-reward demo` works offline"
        ) from error


def encoder_path(name: str | Path, **hub: Any) -> Path:
    """`local_path` of the encoder that a model names, which may lack the model's revision.

    Where the encoder's repository lacks that revision, its main branch is read, with a warning.
    """
    try:
        return local_path(name, **hub)
    except CheckpointError:
        revision = hub.pop("revision", None)
        if revision is None:
            raise
    path = local_path(name, **hub)
    warnings.warn(
        f"the encoder {name} has no revision {revision!r}; its main branch is used", stacklevel=2
    )
    return path


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files of a repository that loading needs: settings, and one form of the weights.

    A folder `clap` inside it is a model of its own.

    >>> wanted_files(["README.md", "config.json", "model.safetensors", "pytorch_model.bin"])
    ['config.json', 'model.safetensors']
    """
    wanted: list[str] = []
    for folder in ("", "clap/"):
        inside = [n.removeprefix(folder) for n in names if n.startswith(folder)]
        inside = [name for name in inside if "/" not in name]
        weights = [name for name in inside if fnmatch(name, SHARDS)] if INDEX in inside else []
        weights = weights or [name for name in WEIGHT_FILES if name in inside][:1]
        settings = [n for n in inside if any(fnmatch(n, pattern) for pattern in SETTINGS)]
        wanted += [folder + name for name in [*settings, *weights]]
    return wanted


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder; raises CheckpointError where it is missing or not JSON."""
    try:
        return read_json(folder / "config.json")
    except DataError as error:
        raise CheckpointError(f"{error}; expected a model folder") from error


def weight_file(path: Path) -> Path:
    """The file of weights: `path` itself, or the first known name in the folder."""
    for name in ("", *WEIGHT_FILES):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} holds no weights; expected one of {', '.join(WEIGHT_FILES)}")


def read_weights(path: Path) -> Any:
    """The content of a weight file: a state dict, or the dict that a training script saved.

    Raises:
        CheckpointError: not a checkpoint, damaged, or a pickle with code in it (never run).
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain file of tensors: it is damaged, or a pickle that would run "
            "code; it was not run. Save it again as tensors only (safetensors or torch.save of a "
            "state dict)"
        ) from error
    except Exception as error:  # zip, JSON, EOF and struct errors, by format and version
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from error


def prefix_before(anchor: str, file: Path, content: Any, kind: str) -> str:
    """What stands before a tensor's name in a file: the prefix of the model that it belongs to.

    Args:
        anchor: the tensor's own name.
        file, kind: of the content and of the model, for messages.
        content: of the file.

    Raises:
        CheckpointError: no such tensor in the file, or several.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    found = [str(name) for name in content if str(name).endswith(anchor)]
    if len(found) != 1:
        raise CheckpointError(
            f"{file} is {kind}: expected one tensor named ...{anchor}, found {len(found)}"
        )
    return found[0].removesuffix(anchor)


def in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors with every float as float32, whatever the file holds.

    A tensor that stays a view of its file lies at any address, for which products take other
    kernels with other roundings.
    """
    return {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in tensors.items()
    }


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def check_tensors(file: Path, tensors: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Every expected tensor exactly once and in its shape, or one CheckpointError listing which."""
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"missing: {listed(missing)}")
    if extra := [name for name in tensors if name not in expected]:
        problems.append(f"not expected: {listed(extra)}")
    for name in sorted(expected.keys() & tensors.keys()):
        value, shape = tensors[name], tuple(expected[name].shape)
        if not isinstance(value, Tensor):
            problems.append(f"{name} is a {type(value).__name__}, not a tensor")
        elif tuple(value.shape) != shape:
            problems.append(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise CheckpointError(f"{file} does not fit the model:\n  " + "\n  ".join(problems))


def load_checked(
    module: nn.Module,
    file: Path,
    tensors: Mapping[str, Tensor],
    unused: Sequence[str] | None = None,
) -> None:
    """Load a file's tensors into a module, which may be on the meta device, as float32.

    Args:
        module: takes them.
        file: for messages.
        tensors: under the module's names.
        unused: beginnings of further names that the file may hold; others are warned of. None
            refuses every tensor that the module does not have.

    Raises:
        CheckpointError: as `check_tensors`.
    """
    expected = module.state_dict()
    if unused is not None:
        extra = sorted(n for n in tensors if n not in expected and not n.startswith(tuple(unused)))
        if extra:
            warnings.warn(f"{file} also holds {listed(extra)}: not used", stacklevel=2)
        tensors = {name: value for name, value in tensors.items() if name in expected}
    check_tensors(file, tensors, expected)
    module.load_state_dict(in_float32(tensors), assign=True)


def check_unused(folder: str | Path) -> Path:
    """The folder's path; raises UsageError where it exists and is not empty."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{folder} is there already; name a new or empty folder")
    return path


def write_folder(
    folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write `model.safetensors`, then `config.json`, each whole."""
    with atomic(folder, last="config.json") as temporary:
        temporary.mkdir()
        write_tensors(temporary / "model.safetensors", tensors)
        text = json.dumps(dict(config), indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in the form that transformers reads."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, file, metadata={"format": "pt"})


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
    """The model of a folder that `write_folder` wrote, in float32.

    Args:
        model_type: the kind of model that its configuration must state.
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
    load_checked(model, file, tensors)
    return model
