"""Score files: find them, decode them in workers, encode them in packed batches, write rows."""

from apex_reward.rewards.engine import BLOCK_SONGS, SongResult, run_songs
from apex_reward.rewards.load import default_workers, load_scorer
from apex_reward.scoring.inputs import find_audio
from apex_reward.scoring.job import ScoreSettings, score_to_file
from apex_reward.scoring.rows import check_mix, score_songs, segment_rows, song_row

__all__ = [
    "BLOCK_SONGS",
    "ScoreSettings",
    "SongResult",
    "check_mix",
    "default_workers",
    "find_audio",
    "load_scorer",
    "run_songs",
    "score_songs",
    "score_to_file",
    "segment_rows",
    "song_row",
]
