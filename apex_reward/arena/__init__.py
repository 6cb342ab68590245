"""Music Arena harness: does a reward agree with people?

`load_battles` reads votes, `evaluate` measures agreement, `calibrate` fits a preference head,
`leaderboards` ranks systems; `apex-reward arena` is the same from a command line.
"""

from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.anchors import learning_curve
from apex_reward.arena.battles import Battles, battles_of
from apex_reward.arena.heldout import calibrate
from apex_reward.arena.leaderboard import arena_scores, leaderboards
from apex_reward.arena.reading import load_battles, load_embeddings
from apex_reward.arena.sources import BattleFilter

__all__ = [
    "BattleFilter",
    "Battles",
    "arena_scores",
    "battles_of",
    "calibrate",
    "evaluate_battles",
    "leaderboards",
    "learning_curve",
    "load_battles",
    "load_embeddings",
]
