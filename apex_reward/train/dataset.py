"""Shards into memory: one block of embeddings per split, every problem found before training.

Shape key: R = segments, N = songs, L = layers, W = embedding width, H = heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from apex_reward.data.shards import SPLITS, EmbeddingSource, FloatArray
from apex_reward.data.teacher import TeacherScores
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.scores.apex import task_heads
from apex_reward.train.split_reader import IntArray, SplitReader

Mode = Literal["song", "segment"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass
class Samples:
    """What a model trains on or is evaluated on.

    Attributes:
        features: (n, W) embeddings, or (n, L, W) where the layer pooling trains.
        labels: (n, H) in head order.
        song: (n,) song number of each sample; in song mode 0 to n - 1.
    """

    features: npt.NDArray[np.floating]
    labels: FloatArray
    song: IntArray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Split:
    """One split in memory; the rows of a song are neighbours, in song order.

    Attributes:
        embeddings: (R, W) float32, or (R, L, W) float16 layer embeddings.
        song: (R,) song number of each row, rising.
        labels: (N, H) float32.
        audio_ids: N names.
    """

    embeddings: npt.NDArray[np.floating]
    song: IntArray
    labels: FloatArray
    audio_ids: list[str]

    def samples(self, mode: str, task: str) -> Samples:
        """Song mode: a song's mean embedding is one sample. Segment mode: each segment is.

        The pooling is linear, so the mean of the layer embeddings serves where it trains.
        """
        labels = self.labels[:, : len(task_heads(task))]
        if mode == "segment":
            return Samples(self.embeddings, labels[self.song], self.song)
        if mode != "song":
            raise UsageError(f"mode is {mode!r}; expected 'song' or 'segment'")
        starts = np.flatnonzero(np.diff(self.song, prepend=-1))
        counts = np.diff(starts, append=len(self.song)).astype(np.float32)
        sums = np.add.reduceat(self.embeddings, starts, axis=0, dtype=np.float32)
        means = sums / counts.reshape(-1, *[1] * (self.embeddings.ndim - 1))
        return Samples(means, labels, np.arange(len(labels)))


@dataclass
class Data:
    """The splits that were asked for, and what made their embeddings."""

    splits: dict[str, Split]
    source: EmbeddingSource
    task: str

    def __getitem__(self, split: str) -> Split:
        return self.splits[split]


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
    loaded = {}
    for split, found in files.items():
        if found:
            reader = SplitReader(split, task, source, layers, teacher)
            loaded[split] = reader.read(found)
            problems += reader.problems
    splits = {split: Split(*data) for split, data in loaded.items() if data is not None}
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
        if source not in sources:
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
