"""What made a number: version, models, mix, loudness, guards, precision; for every file."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError
from apex_reward.model.source import source_of
from apex_reward.rewards.saved import reward_values

if TYPE_CHECKING:
    from apex_reward.rewards.reward import Reward


def provenance(reward: Reward) -> dict[str, Any]:
    """What a reward's numbers depend on, as plain values: the same for the same numbers.

    `models` has an entry per member: where it is from, a hash of weights and settings, its segment
    tail, dtype and device.
    """
    parts = reward.parts.parts
    return {
        "version": package_version(),
        "models": {part.name or part.model.name: _about(part.model) for part in parts},
        "reward": _values(reward),
        "batch_segments": reward.batch_segments,
        "demonstration": reward.demonstration,
    }


def package_version() -> str:
    """The installed version, or 0.0.0 in a source tree."""
    try:
        return version("apex-reward")
    except PackageNotFoundError:
        return "0.0.0"


def _values(reward: Reward) -> dict[str, Any]:
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
    }


def model_hash(model: Any) -> str:
    """A hash of weights and settings: the same name may hold another model tomorrow."""
    from torch import nn

    from apex_reward.model.encode import weights_hash

    weights = weights_hash(model) if isinstance(model, nn.Module) else ""
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    names = ("encoder", "layers", "task", "sample_rate", "segment_seconds", "preference")
    settings = json.dumps({name: values.get(name) for name in names}, sort_keys=True, default=str)
    heads = [[head.name, head.low, head.high] for head in model.heads]
    text = json.dumps([weights, settings, heads, type(model).__qualname__])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
