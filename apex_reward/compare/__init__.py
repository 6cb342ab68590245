"""What a fine-tune changed: songs before and after, paired by prompt."""

from apex_reward.compare.figures import compare_songs
from apex_reward.compare.report import write_comparison
from apex_reward.compare.songs import Judges, Song, measure_songs

__all__ = ["Judges", "Song", "compare_songs", "measure_songs", "write_comparison"]
