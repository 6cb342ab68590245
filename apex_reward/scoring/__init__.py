"""Score files and data sets: find songs, judge them through a `Reward`, write rows."""

from apex_reward.scoring.datasets import score_dataset
from apex_reward.scoring.engines import Engine
from apex_reward.scoring.inputs import Input, find_audio, find_songs
from apex_reward.scoring.job import score_to_file
from apex_reward.scoring.rows import ScoreSettings, score_songs

__all__ = [
    "Engine",
    "Input",
    "ScoreSettings",
    "find_audio",
    "find_songs",
    "score_dataset",
    "score_songs",
    "score_to_file",
]
