"""Reward model for music generators: popularity and aesthetics from audio, differentiable.

Public names are imported on first use, so that `import apex_reward` and the command line's
`--help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex_reward.model import ApexConfig as ApexConfig
    from apex_reward.model import ApexReward as ApexReward
    from apex_reward.pairs import build_pairs as build_pairs
    from apex_reward.prompt import Prompt as Prompt
    from apex_reward.rewards.guards import Guard as Guard
    from apex_reward.rewards.guards import Guards as Guards
    from apex_reward.rewards.load import load_reward_model as load_reward_model
    from apex_reward.rewards.panel import Panel as Panel
    from apex_reward.rewards.protocol import RewardModel as RewardModel
    from apex_reward.rewards.reward import Reward as Reward
    from apex_reward.rewards.stacks.trl import ApexRewardFunction as ApexRewardFunction
    from apex_reward.scores.head import Head as Head
    from apex_reward.scores.mix import RewardMix as RewardMix
    from apex_reward.scores.scores import Scores as Scores

    __version__: str

_PUBLIC = {
    "ApexConfig": "apex_reward.model",
    "ApexReward": "apex_reward.model",
    "ApexRewardFunction": "apex_reward.rewards.stacks.trl",
    "Guard": "apex_reward.rewards.guards",
    "Guards": "apex_reward.rewards.guards",
    "Head": "apex_reward.scores.head",
    "Panel": "apex_reward.rewards.panel",
    "Prompt": "apex_reward.prompt",
    "Reward": "apex_reward.rewards.reward",
    "RewardMix": "apex_reward.scores.mix",
    "RewardModel": "apex_reward.rewards.protocol",
    "Scores": "apex_reward.scores.scores",
    "build_pairs": "apex_reward.pairs",
    "load_reward_model": "apex_reward.rewards.load",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "__version__":
        # Importing the reader of package metadata takes as long as importing typer.
        return import_module("apex_reward.version").package_version()
    raise AttributeError(f"module 'apex_reward' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
