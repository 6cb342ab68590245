"""What a fine-tune changed: songs before and after, paired by prompt."""

from apex_reward.compare.figures import compare_songs
from apex_reward.compare.report import write_comparison
from apex_reward.compare.songs import Song, judges, measure_songs

__all__ = ["Song", "compare_songs", "judges", "measure_songs", "write_comparison"]
