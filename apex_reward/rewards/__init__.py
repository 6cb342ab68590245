"""Rewards: models, panels, the `Reward` object, guards, gradients and the stacks' adapters."""

from apex_reward.rewards.guards import DEFAULT_GUARDS, Guard, Guards
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.panel import Panel
from apex_reward.rewards.protocol import RewardModel
from apex_reward.rewards.reward import Reward, as_reward
from apex_reward.rewards.stacks.trl import ApexRewardFunction

__all__ = [
    "DEFAULT_GUARDS",
    "ApexRewardFunction",
    "Guard",
    "Guards",
    "Panel",
    "Reward",
    "RewardModel",
    "as_reward",
    "load_reward_model",
]
