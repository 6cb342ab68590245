"""Columns of scores for a Hugging Face data set with songs.

Shape key: B = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apex_reward.errors import DataError
from apex_reward.files.songs_inside import undecoded
from apex_reward.prompt import prompts_of
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import row_columns, song_row
from apex_reward.scoring.rows import kept_names

BATCH = 16


def score_dataset(
    dataset: Any,
    reward: Reward | Models,
    audio_column: str = "audio",
    prompt_column: str = "prompt",
    batch_size: int = BATCH,
) -> Any:
    """The data set with a column per head, `reward_raw`, `reward`, `flags` and `error`.

    Args:
        dataset: a `Dataset`, `IterableDataset`, `DatasetDict` or `IterableDatasetDict`; songs are
            paths, bytes, arrays or decoders of an Audio column. Bytes and paths are decoded here.
        reward: a `Reward`, or models for their default mix.
        audio_column: where the songs are.
        prompt_column: where the prompts are, for models that read them.
        batch_size: rows that share encoder batches.

    Returns:
        A data set of the same kind. A song that cannot be scored has its reason as `error`. A
        column that has the name of a new one is kept as `input.<name>`.

    Raises:
        DataError: a column is not there.
        UsageError: a mix that needs whole prompt groups.
    """
    judge = as_reward(reward)
    judge.check_single()
    if isinstance(dataset, Mapping) and hasattr(dataset, "column_names"):
        kind: Any = type(dataset)
        return kind({
            name: score_dataset(part, judge, audio_column, prompt_column, batch_size)
            for name, part in dataset.items()
        })  # fmt: skip
    reads = judge.model.reads_text
    present = list(getattr(dataset, "column_names", None) or ())  # unknown for some streams
    needed = [audio_column, *([prompt_column] if reads else [])]
    if lacking := [name for name in needed if present and name not in present]:
        raise DataError(
            f"the data set has no column {', '.join(lacking)}; it has {', '.join(present)}"
        )
    names = [*row_columns(judge, rewarded=True), "flags", "error"]
    kept = kept_names(present, names)
    if renamed := {name: own for name, own in kept.items() if name != own}:
        dataset = dataset.rename_columns(renamed)
    prompt = kept.get(prompt_column, prompt_column)

    def scored(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        songs = list(batch[audio_column])
        prompts = prompts_of(batch[prompt], batch.get("lyrics")) if reads else None
        settings = judge.engine_settings(block=max(1, len(songs)))
        results = judge.results(songs, prompts, settings=settings)
        rows = [song_row(judge, result, rewarded=True) for result in results]
        return {name: [row[name] for row in rows] for name in names}

    undecoded_songs = undecoded(dataset, audio_column)
    return undecoded_songs.map(scored, batched=True, batch_size=batch_size)
