"""Preference pairs for DPO: from scored candidates to a dataset, every drop accounted for."""

from apex_reward.pairs.build import build_pairs
from apex_reward.pairs.forms import to_kto, to_trl

__all__ = ["build_pairs", "to_kto", "to_trl"]
