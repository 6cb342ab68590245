"""Rewards for training loops: guards, TRL's reward function, decoders, gradients."""

from apex_reward.reward.guards import DEFAULT_GUARDS, Guard, Guards
from apex_reward.reward.trl import ApexRewardFunction

__all__ = ["DEFAULT_GUARDS", "ApexRewardFunction", "Guard", "Guards"]
