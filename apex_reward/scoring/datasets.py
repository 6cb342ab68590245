"""Columns of scores for a Hugging Face data set with songs.

Shape key: B = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apex_reward.errors import DataError, UsageError
from apex_reward.files.songs_inside import undecoded
from apex_reward.prompt import prompts_of
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import row_columns, song_row

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
        UsageError: a mix that needs whole prompt groups, or something that is no data set.
    """
    judge = as_reward(reward)
    judge.check_single()
    if isinstance(dataset, Mapping) and hasattr(dataset, "column_names"):
        parts = {
            name: score_dataset(part, judge, audio_column, prompt_column, batch_size)
            for name, part in dataset.items()
        }
        kind: Any = type(dataset)
        return kind(parts)
    if not hasattr(dataset, "map"):
        raise UsageError(f"{type(dataset).__name__} is no data set of the datasets library")
    _check_columns(dataset, audio_column, prompt_column if judge.model.reads_text else None)
    names = _columns(judge)
    taken = [name for name in getattr(dataset, "column_names", None) or () if name in names]
    if renamed := {name: f"input.{name}" for name in taken}:
        prompt_column = renamed.get(prompt_column, prompt_column)
        dataset = dataset.rename_columns(renamed)
    return undecoded(dataset, audio_column).map(
        lambda batch: _scored(judge, batch, audio_column, prompt_column),
        batched=True,
        batch_size=batch_size,
    )


def _columns(reward: Reward) -> list[str]:
    return [*row_columns(reward, rewarded=True), "flags", "error"]


def _check_columns(dataset: Any, audio: str, prompt: str | None) -> None:
    names = list(getattr(dataset, "column_names", None) or ())
    lacking = [name for name in (audio, prompt) if name and names and name not in names]
    if lacking:
        raise DataError(
            f"the data set has no column {', '.join(lacking)}; it has {', '.join(names)}"
        )


def _scored(
    reward: Reward, batch: Mapping[str, list[Any]], audio: str, prompt: str
) -> dict[str, list[Any]]:
    songs = list(batch[audio])
    prompts = None
    if reward.model.reads_text:
        prompts = prompts_of(batch[prompt], batch.get("lyrics"))
    settings = reward.engine_settings(block=max(1, len(songs)))
    results = reward.results(songs, prompts, settings=settings)
    rows = [song_row(reward, result, rewarded=True) for result in results]
    names = _columns(reward)
    return {name: [row[name] for row in rows] for name in names}
