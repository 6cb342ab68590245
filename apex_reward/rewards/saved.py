"""A `Reward` as a YAML file: models by name, mix, loudness, guards, caution."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import ApexError, DataError, UsageError
from apex_reward.files.tables import write_text
from apex_reward.rewards.guards import Guards
from apex_reward.rewards.load import load_reward_model
from apex_reward.scores.mix import RewardMix

if TYPE_CHECKING:
    from apex_reward.rewards.protocol import RewardModel
    from apex_reward.rewards.reward import Reward

KEYS = ("models", "mix", "loudness", "guards", "caution")


def reward_values(reward: Reward) -> dict[str, Any]:
    """The reward as plain values, JSON- and YAML-ready.

    Raises:
        UsageError: a model or a guard that was made in code and has no name to load it by.
    """
    from apex_reward.rewards.panel import Panel

    model = reward.model
    members = model.models if isinstance(model, Panel) else {model.name: model}
    sources = {name: reward.sources.get(name) or source_of(m) for name, m in members.items()}
    models: Any = sources if isinstance(model, Panel) else next(iter(sources.values()))
    mix = reward.mix
    return {
        "models": models,
        "mix": mix.to_dict(),
        "loudness": reward.loudness,
        "guards": reward.guards.to_dict() if reward.guards.guards else None,
        "caution": reward.caution,
    }


def source_of(model: RewardModel) -> str:
    """The name that loads a model: what it was loaded from, else its class.

    Raises:
        UsageError: neither finds it again.
    """
    config = getattr(model, "config", None)
    named = getattr(config, "name_or_path", None) or getattr(model, "name_or_path", None)
    if named:
        return str(named)
    kind = type(model)
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not kind or kind.__module__ == "__main__":
        raise UsageError(
            f"the model {model.name} was made in code and has no name to load it by; save it "
            "(save_pretrained) and name the folder, or put its class into an importable module"
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def save_reward(reward: Reward, path: str | Path) -> None:
    """Write `reward_values` as YAML, whole."""
    import yaml

    text = yaml.safe_dump(reward_values(reward), sort_keys=False, allow_unicode=True)
    write_text(path, text)


def load_reward(path: str | Path, **options: Any) -> Reward:
    """Read what `save_reward` wrote, or a person in its form; see `Reward.load`."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected a reward file (YAML)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {error}") from error
    return reward_of_values(values, path, **options)


def reward_of_values(values: Any, path: str | Path = "reward.yaml", **options: Any) -> Reward:
    """The reward of `reward_values`.

    Args:
        path: the file that they stood in, for messages and for folders named beside it.
        options: of `load_reward_model`.

    Raises:
        DataError: not such values; all problems are listed together.
    """
    from apex_reward.rewards.reward import Reward

    if problems := _problems(values):
        raise DataError.listing(f"{path} is no reward", problems)
    sources, models = _models(values["models"], Path(path).parent, options)
    try:
        reward = Reward(
            models,
            _mix(values.get("mix")),
            loudness=values.get("loudness"),
            guards=_guards(values.get("guards")),
            caution=values.get("caution") or 0.0,
        )
    except ApexError as error:
        raise type(error)(f"{path}: {error}") from error
    reward.sources.update(sources)
    return reward


def _problems(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f"it holds {type(values).__name__}; expected the keys {', '.join(KEYS)}"]
    problems = [f"unknown key {key!r}" for key in values if key not in KEYS]
    if not values.get("models"):
        problems.append("'models' names no model")
    problems += [
        f"{key} is {values[key]!r}; expected a number"
        for key in ("loudness", "caution")
        if values.get(key) is not None
        and (isinstance(values[key], bool) or not isinstance(values[key], (int, float)))
    ]
    return problems


def _models(given: Any, folder: Path, options: dict[str, Any]) -> tuple[dict[str, str], Any]:
    """What each model is loaded from, and the models as `Reward` takes them."""
    if isinstance(given, str):
        model = load_reward_model(_beside(given, folder), **options)
        return {model.name: given}, model
    if isinstance(given, Mapping):
        loaded = {
            str(n): load_reward_model(_beside(str(source), folder), **options)
            for n, source in given.items()
        }
        return {str(n): str(source) for n, source in given.items()}, loaded
    models = [load_reward_model(_beside(str(source), folder), **options) for source in given]
    return {m.name: str(s) for m, s in zip(models, given, strict=True)}, models


def _beside(source: str, folder: Path) -> str:
    """A folder named relative to the reward's file, where it is not one from here."""
    there = folder / source
    return str(there) if not Path(source).exists() and there.is_dir() else source


def lasting(source: str, folder: Path) -> str:
    """A model's source that means the same from any folder; hub ids and classes as they are."""
    kind, colon, rest = source.rpartition(":")
    found = Path(_beside(rest, folder))
    return f"{kind}{colon}{found.resolve()}" if found.is_dir() else source


def _mix(value: Any) -> Any:
    if isinstance(value, Mapping) and "weights" in value and "normalization" in value:
        return RewardMix.from_dict(value)
    return value


def _guards(value: Any) -> Any:
    return Guards.from_dict(value) if isinstance(value, Mapping) else value
