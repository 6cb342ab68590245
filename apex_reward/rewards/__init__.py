"""Rewards for training loops: guards, TRL's reward function, decoders, gradients."""

from apex_reward.rewards.guards import DEFAULT_GUARDS, Guard, Guards
from apex_reward.rewards.stacks.trl import ApexRewardFunction

__all__ = ["DEFAULT_GUARDS", "ApexRewardFunction", "Guard", "Guards"]
