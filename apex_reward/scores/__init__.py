"""Heads, scores, and how they become one scalar reward."""

from apex_reward.scores.head import Head
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.preference import PreferenceHead
from apex_reward.scores.scores import Scores

__all__ = ["Head", "PreferenceHead", "RewardMix", "Scores"]
