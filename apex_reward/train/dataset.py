"""Shards into memory: one block of embeddings per split, every problem found before training.

Shape key: N = songs, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from apex_reward.data.shards import SPLITS, EmbeddingSource
from apex_reward.data.teacher import TeacherScores
from apex_reward.errors import DataError, listed
from apex_reward.model.predictor import Familiarity
from apex_reward.train.familiar import fit_familiarity
from apex_reward.train.split import Split
from apex_reward.train.split_reader import SplitReader


@dataclass
class Data:
    """The splits that were asked for, and what made their embeddings."""

    splits: dict[str, Split]
    source: EmbeddingSource
    task: str

    def __getitem__(self, split: str) -> Split:
        return self.splits[split]

    @cached_property
    def familiarity(self) -> Familiarity | None:
        """Statistics of the training songs' (N, W) embeddings; None where they are too few."""
        return fit_familiarity(self["train"].samples("song", "popularity").features)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of a data set's three splits.

    Raises:
        DataError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one with {', '.join(SPLITS)}")
    return {split: folder / split for split in SPLITS}


def load_data(
    folders: Mapping[str, Path],
    task: str,
    *,
    source: EmbeddingSource | None = None,
    layers: bool = False,
    teacher: TeacherScores | None = None,
) -> Data:
    """Read and check the shards `*.parquet` of every split.

    Args:
        folders: by split name.
        task: `popularity` or `full`; the latter needs aesthetic labels.
        source: what made the embeddings; None takes what the shards say, else MERT-v1-95M.
        layers: read `layer_embeddings` instead of `segment_embedding`.
        teacher: aesthetic labels by `audio_id`, in place of the shards' `songeval_scores`.

    Raises:
        DataError: everything that is wrong, listed together.
    """
    files = {split: sorted(folder.glob("*.parquet")) for split, folder in folders.items()}
    problems = [f"{name}: no shards {folders[name]}/*.parquet" for name in files if not files[name]]
    recorded = recorded_sources([file for found in files.values() for file in found])
    if len(recorded) > 1:
        problems.append("the shards come from different encoders or poolings; extract them anew")
    source = source or recorded[0]
    splits = {}
    for split, found in files.items():
        if found:
            reader = SplitReader(split, task, source, layers, teacher)
            read = reader.read(found)
            problems += reader.problems
            if read is not None:
                splits[split] = read
    problems += _songs_on_two_sides(splits)
    if problems:
        raise DataError.listing("the training data cannot be used", problems)
    return Data(splits, source, task)


def recorded_sources(files: Sequence[Path]) -> list[EmbeddingSource]:
    """What the shards say made them, each once; published shards stand for MERT-v1-95M."""
    import pyarrow.parquet as pq

    sources: list[EmbeddingSource] = []
    for file in files:
        try:
            metadata = pq.read_metadata(file).metadata
        except (OSError, ValueError):
            continue  # reported when the file is read
        source = EmbeddingSource.from_metadata(metadata) or EmbeddingSource.published()
        if not any(source.same_embeddings(known) for known in sources):
            sources.append(source)
    return sources or [EmbeddingSource.published()]


def _songs_on_two_sides(splits: Mapping[str, Split]) -> list[str]:
    """A song in two splits would be tested on what it was trained on."""
    names = {split: set(data.audio_ids) for split, data in splits.items()}
    return [
        f"{first} and {second} share the songs {listed(sorted(names[first] & names[second]), 4)}"
        for first, second in combinations(names, 2)
        if names[first] & names[second]
    ]
