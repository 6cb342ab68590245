"""A `Reward` as a YAML file, and what its numbers depend on, for the metadata of results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

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
from apex_reward.version import package_version

KEYS = ("models", "mix", "loudness", "guards", "caution", "cascade")


def reward_values(reward: Any, folder: Path | None = None) -> dict[str, Any]:
    """The reward as plain values, JSON- and YAML-ready; local models by absolute paths.

    Args:
        folder: of the file that gets the values; models inside it are named as seen from there, so
            that the folder can be moved as a whole.

    Raises:
        UsageError: a model or a guard that was made in code and has no name to load it by.
    """
    guards = reward.guards
    actions = (action for action in get_args(Action) if guards == Guards.default(action))
    values = {
        "models": _plain_models(reward.model, folder),
        "mix": reward.mix.to_dict(),
        "loudness": reward.loudness,
        # An action where the guards are the default ones, else all of them in full.
        "guards": next(actions, guards.to_dict()) if guards.guards else None,
        "caution": reward.caution,
    }
    if reward.student is not None:
        student = _plain_models(reward.student.model, folder)
        values["cascade"] = {"student": student, "keep": reward.keep}
    return values


def _plain_models(model: Any, folder: Path | None) -> Any:
    if isinstance(model, Panel):
        return {name: _plain_models(one, folder) for name, one in model.models.items()}
    return source_of(model).located(Path(), KNOWN).seen_from(folder).plain()


def save_values(values: Mapping[str, Any], path: str | Path) -> None:
    """Write `reward_values` as YAML, whole."""
    write_text(path, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def read_values(path: str | Path) -> Any:
    """What `save_values` wrote, or a person in its form."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected a reward file (YAML)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {error}") from error


def reward_of_values(
    kind: Any, values: Any, path: str | Path = "reward.yaml", **options: Any
) -> Any:
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
    folder = Path(path).parent
    guards = values.get("guards")
    try:
        made = kind(
            _models(values["models"], folder, options),
            values.get("mix"),
            loudness=values.get("loudness"),
            guards=Guards.from_dict(guards) if isinstance(guards, Mapping) else guards,
            caution=values.get("caution") or 0.0,
        )
        if cascade := values.get("cascade"):
            student = _models(cascade["student"], folder, options)
            made = kind.cascade(student, made, keep=cascade["keep"])
        return made
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
        return [_models(one, folder, options) for one in given]
    if isinstance(given, Mapping) and "name" not in given:
        return {str(name): _models(one, folder, options) for name, one in given.items()}
    return load_reward_model(Source.of_plain(given).located(folder, KNOWN), **options)


def provenance(reward: Any) -> dict[str, Any]:
    """What a reward's numbers depend on, as plain values: the same for the same numbers.

    `models` has an entry per member: where it is from, a hash of weights and settings, its segment
    tail, dtype and device.
    """
    try:
        values = reward_values(reward)
    except UsageError:  # a model made in code: its class has to do
        values = {
            "mix": reward.mix.to_dict(),
            "loudness": reward.loudness,
            "guards": list(reward.guards.names),
            "caution": reward.caution,
        }
    values.pop("models", None)
    models = zip(reward.sources.items(), reward.parts.members, strict=True)
    about = {
        "version": package_version(),
        "models": {name: {"source": s, **_about(one.model)} for (name, s), one in models},
        "reward": values,
        "batch_segments": reward.batch_segments,
        "demonstration": reward.demonstration,
    }
    if reward.student is not None:
        about["cascade"] = {"keep": reward.keep, "student": provenance(reward.student)}
    return about


def _about(model: Any) -> dict[str, Any]:
    return {
        "hash": model_hash(model),
        "segment_tail": getattr(getattr(model, "config", None), "segment_tail", None),
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
    served = getattr(model, "served", None)  # of a remote model
    text = json.dumps([weights, settings, heads, served, type(model).__qualname__], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
