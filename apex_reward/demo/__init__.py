"""Synthetic songs, known damage, the embedded demonstration model apex-tiny, and the tour."""

from apex_reward.demo.damage import DAMAGES, SEVERITIES, DamageScores, damage, score_damage
from apex_reward.demo.songs import make_song

__all__ = [
    "DAMAGES",
    "SEVERITIES",
    "DamageScores",
    "damage",
    "make_song",
    "score_damage",
]
