"""A `Reward` as a YAML file, and what its numbers depend on, for the metadata of results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from torch import nn

from apex_reward.errors import ApexError, DataError, UsageError
from apex_reward.files.tables import write_text
from apex_reward.model.encode import weights_hash
from apex_reward.model.licences import licences_of
from apex_reward.model.source import Source, source_of
from apex_reward.rewards.guards import Action, Guards
from apex_reward.rewards.load import KNOWN, load_reward_model
from apex_reward.rewards.panel import Panel
from apex_reward.scores.mix import RewardMix
from apex_reward.version import package_version

Made = TypeVar("Made")

KEYS = ("models", "mix", "loudness", "guards", "caution", "cascade")


def reward_values(reward: Any, folder: Path | None = None) -> dict[str, Any]:
    """The reward as plain values, JSON- and YAML-ready.

    Args:
        folder: of the file that gets the values; models inside it are named relative to it. Other
            local models, and all of them without a folder, are named by absolute paths.

    Raises:
        UsageError: a model or a guard that was made in code and has no name to load it by.
    """
    cascade = {}
    if reward.student is not None:
        student = _plain_models(reward.student.model, folder)
        cascade = {"cascade": {"student": student, "keep": reward.keep}}
    return {
        "models": _plain_models(reward.model, folder),
        "mix": reward.mix.to_dict(),
        "loudness": reward.loudness,
        "guards": _plain_guards(reward.guards),
        "caution": reward.caution,
        **cascade,
    }


def _plain_models(model: Any, folder: Path | None) -> Any:
    if isinstance(model, Panel):
        return {name: _plain(source_of(one), folder) for name, one in model.models.items()}
    return _plain(source_of(model), folder)


def save_reward(reward: Any, path: str | Path) -> None:
    """Write `reward_values` as YAML, whole."""
    values = reward_values(reward, Path(path).resolve().parent)
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def load_reward(kind: Callable[..., Made], path: str | Path, **options: Any) -> Made:
    """Read what `save_reward` wrote, or a person in its form; see `Reward.load`."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected a reward file (YAML)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {error}") from error
    return reward_of_values(kind, values, path, **options)


def reward_of_values(
    kind: Callable[..., Made], values: Any, path: str | Path = "reward.yaml", **options: Any
) -> Made:
    """The reward of `reward_values`.

    Args:
        kind: `Reward`.
        path: the file that they stood in, for messages and for folders named beside it.
        options: of `load_reward_model`.

    Raises:
        DataError: not such values; all problems are listed together.
    """
    if problems := _problems(values):
        raise DataError.listing(f"{path} is no reward", problems)
    try:
        made = kind(
            _models(values["models"], Path(path).parent, options),
            _mix(values.get("mix")),
            loudness=values.get("loudness"),
            guards=_guards(values.get("guards")),
            caution=values.get("caution") or 0.0,
        )
        if not (cascade := values.get("cascade")):
            return made
        student = _models(cascade["student"], Path(path).parent, options)
        joined: Any = kind
        return joined.cascade(student, made, keep=cascade["keep"])
    except ApexError as error:
        raise type(error)(f"{path}: {error}") from error


def _problems(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f"it holds {type(values).__name__}; expected the keys {', '.join(KEYS)}"]
    problems = [f"unknown key {key!r}" for key in values if key not in KEYS]
    if not values.get("models"):
        problems.append("'models' names no model")
    cascade = values.get("cascade")
    if cascade and (not isinstance(cascade, Mapping) or set(cascade) != {"student", "keep"}):
        problems.append(f"cascade is {cascade!r}; expected the keys student and keep")
    problems += [
        f"{key} is {values[key]!r}; expected a number"
        for key in ("loudness", "caution")
        if values.get(key) is not None
        and (isinstance(values[key], bool) or not isinstance(values[key], (int, float)))
    ]
    return problems


def _models(given: Any, folder: Path, options: dict[str, Any]) -> Any:
    """The models as `Reward` takes them: one, a list, or a mapping of names."""
    if isinstance(given, list):
        return [_loaded(one, folder, options) for one in given]
    if isinstance(given, Mapping) and "name" not in given:
        return {str(name): _loaded(one, folder, options) for name, one in given.items()}
    return _loaded(given, folder, options)


def _loaded(given: Any, folder: Path, options: dict[str, Any]) -> Any:
    return load_reward_model(Source.of_plain(given).located(folder, KNOWN), **options)


def _plain(source: Source, folder: Path | None) -> str | dict[str, str]:
    source = source.located(Path(), KNOWN)
    if folder is not None:
        encoder = None if source.encoder is None else _relative(source.encoder, folder)
        kind, _, rest = source.name.partition(":")
        name = (
            f"{kind}:{_relative(rest, folder)}"
            if kind in KNOWN and rest
            else (_relative(source.name, folder))
        )
        source = replace(source, name=name, encoder=encoder)
    return source.plain()


def _relative(name: str, folder: Path) -> str:
    """A path inside the folder as seen from there; anything else as it is."""
    if not os.path.isabs(name) or not Path(name).is_relative_to(folder):
        return name
    inside = Path(name).relative_to(folder).as_posix()
    return f"./{inside}" if inside in KNOWN else inside


def _plain_guards(guards: Guards) -> Any:
    """None, an action where the guards are the default ones, or all of them in full."""
    if not guards.guards:
        return None
    known = [action for action in get_args(Action) if guards == Guards.default(action)]
    return known[0] if known else guards.to_dict()


def _mix(value: Any) -> Any:
    if isinstance(value, Mapping) and "weights" in value and "normalization" in value:
        return RewardMix.from_dict(value)
    return value


def _guards(value: Any) -> Any:
    return Guards.from_dict(value) if isinstance(value, Mapping) else value


def provenance(reward: Any) -> dict[str, Any]:
    """What a reward's numbers depend on, as plain values: the same for the same numbers.

    `models` has an entry per member: where it is from, a hash of weights and settings, its segment
    tail, dtype and device.
    """
    members = reward.parts.members
    further = {}
    if reward.student is not None:
        further = {"cascade": {"keep": reward.keep, "student": provenance(reward.student)}}
    return {
        **further,
        "version": package_version(),
        "models": {one.name or one.model.name: _about(one.model) for one in members},
        "reward": _values(reward),
        "batch_segments": reward.batch_segments,
        "demonstration": reward.demonstration,
    }


def _values(reward: Any) -> dict[str, Any]:
    try:
        values = reward_values(reward)
    except UsageError:  # a model made in code: its class has to do
        values = {
            "mix": reward.mix.to_dict(),
            "loudness": reward.loudness,
            "guards": list(reward.guards.names),
            "caution": reward.caution,
        }
    return {name: value for name, value in values.items() if name != "models"}


def _about(model: Any) -> dict[str, Any]:
    try:
        source = str(source_of(model))
    except UsageError:
        source = f"{type(model).__module__}.{type(model).__qualname__}"
    config = getattr(model, "config", None)
    return {
        "source": source,
        "hash": model_hash(model),
        "segment_tail": getattr(config, "segment_tail", None),
        "dtype": str(getattr(model, "dtype", None) or "float32").removeprefix("torch."),
        "device": getattr(getattr(model, "device", None), "type", "cpu"),
        "licences": licences_of([model]),
    }


def model_hash(model: Any) -> str:
    """A hash of weights and settings: the model behind a name may change."""
    weights = weights_hash(model) if isinstance(model, nn.Module) else ""
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    names = ("encoder", "layers", "task", "sample_rate", "segment_seconds", "preference",
             "own_heads")  # fmt: skip
    settings = json.dumps({name: values.get(name) for name in names}, sort_keys=True, default=str)
    heads = [[head.name, head.low, head.high] for head in model.heads]
    text = json.dumps([weights, settings, heads, type(model).__qualname__])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
