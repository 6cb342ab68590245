"""Agreement with human votes.

`load_battles` reads votes, `evaluate_battles` measures how far scores agree with them, `calibrate`
fits a preference head, `leaderboards` ranks systems, `findings` puts figures into words. The
command line `apex-reward arena` does the same.
"""

from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import Battles, battles_of
from apex_reward.arena.calibration import calibrate, learning_curve
from apex_reward.arena.findings import findings
from apex_reward.arena.leaderboard import arena_scores, leaderboards
from apex_reward.arena.sources import BattleFilter, load_battles, load_embeddings

__all__ = [
    "BattleFilter",
    "Battles",
    "arena_scores",
    "battles_of",
    "calibrate",
    "evaluate_battles",
    "findings",
    "leaderboards",
    "learning_curve",
    "load_battles",
    "load_embeddings",
]
