"""Preference pairs for DPO: from scored candidates to a dataset, every drop accounted for."""

from apex_reward.pairs.build import build_pairs

__all__ = ["build_pairs"]
