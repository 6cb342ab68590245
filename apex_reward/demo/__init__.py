"""Synthetic songs, known damage, the embedded demonstration model apex-tiny, and the tour."""

from apex_reward.demo.damage import DAMAGES, SEVERITIES, damage
from apex_reward.demo.evaluate import DamageScores, score_damage
from apex_reward.demo.songs import JUNK, make_junk, make_song, make_texture

__all__ = [
    "DAMAGES",
    "JUNK",
    "SEVERITIES",
    "DamageScores",
    "damage",
    "make_junk",
    "make_song",
    "make_texture",
    "score_damage",
]
