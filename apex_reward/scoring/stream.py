"""Songs of files to rows, as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import Row, song_row

if TYPE_CHECKING:
    from apex_reward.model.encode import Prompts


@dataclass(frozen=True)
class ScoreSettings:
    """What decides the rows of a run, beside the reward and the inputs.

    Args:
        rewarded: add `reward_raw` and `reward`.
        segments: write the second file, a row per segment.
        members: add what each member of an ensemble says.
    """

    rewarded: bool = False
    segments: bool = False
    members: bool = False


def score_songs(
    reward: Reward | Models,
    sources: Sequence[str],
    prompts: Prompts = None,
    settings: ScoreSettings | None = None,
    *,
    workers: int = 0,
    block: int = BLOCK_SONGS,
) -> Iterator[Row]:
    """Score files: one row per source, in their order, each as soon as it is ready.

    Yields:
        Rows as `song_row` makes them; with `segments` the key `segment_rows` too.

    Raises:
        UsageError: missing prompts, or a mix that needs groups.
    """
    settings, reward = settings or ScoreSettings(), as_reward(reward)
    if settings.rewarded:
        reward.check_single()
    heard = reward.engine_settings(block=block, pieces=settings.segments)
    for result in reward.results(sources, prompts, workers=workers, settings=heard):
        row = song_row(reward, result, settings.rewarded, settings.members)
        if settings.segments:
            row["segment_rows"] = reward.segment_rows(result)
        yield row
