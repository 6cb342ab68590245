"""Files through one model's encoders, their pieces kept: for shards and for tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apex_reward.audio.decoding import decode_songs
from apex_reward.model.apex import ApexReward
from apex_reward.rewards.engine import BLOCK_SONGS, EngineSettings, SongResult, run_songs
from apex_reward.rewards.panel import members_of
from apex_reward.rewards.reward import decode_settings_of


def encode_files(
    model: ApexReward,
    paths: Sequence[str],
    *,
    batch_segments: int | None = None,
    workers: int = 0,
    block: int = BLOCK_SONGS,
) -> Iterator[SongResult]:
    """One SongResult per file, in order; `pieces` holds its segments' layer embeddings (S, L, W).

    Arguments and errors are those of `EngineSettings`; `workers` decode, 0 in this process.
    """
    members = members_of(model)
    settings = EngineSettings(batch_segments=batch_segments, block=block, pieces=True, scored=False)
    return run_songs(members, decode_songs(paths, decode_settings_of(members), workers), settings)
