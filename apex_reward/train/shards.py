"""Training shards in memory: one block of embeddings per split; every problem is found at once.

Shape key: R = segments, N = songs, n = samples, L = layers, W = embedding width, H = heads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from apex_reward.data.shards import SPLITS, EmbeddingSource, FloatArray, list_values
from apex_reward.data.teacher import TeacherScores, parse_songeval, read_teacher
from apex_reward.errors import DataError, listed
from apex_reward.model.predictor import Familiarity, LayerPooling
from apex_reward.scores.apex import AESTHETIC_HEADS, POPULARITY_HEADS, head_range, task_heads
from apex_reward.train.report import fit_familiarity

IntArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]
WEIGHT = "segment_weight"


@dataclass
class Samples:
    """What a model trains on or is evaluated on.

    Attributes:
        features: (n, W) embeddings, or (n, L, W) where the layer pooling trains.
        labels: (n, H) in head order.
        song: (n,) song number of each sample, rising; in song mode 0 to n - 1.
        weight: (n,) weight of each sample in its song's mean, 1 for the largest of a song.
    """

    features: npt.NDArray[np.floating]
    labels: FloatArray
    song: IntArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Split:
    """One split in memory; the rows of a song are neighbours, in song order.

    Attributes:
        embeddings: (R, W) float32, or (R, L, W) float16 layer embeddings.
        song: (R,) song number of each row, rising.
        weight: (R,) weight of each row in its song's mean, 1 for the largest of a song.
        labels: (N, H) float32.
        audio_ids: N names.
    """

    embeddings: npt.NDArray[np.floating]
    song: IntArray
    weight: FloatArray
    labels: FloatArray
    audio_ids: list[str]

    def samples(self, mode: str, task: str) -> Samples:
        """The samples of a mode: each song's mean embedding (`song`), or each segment.

        The layer pooling is linear, so the mean of the layer embeddings serves where it trains.
        """
        labels = self.labels[:, : len(task_heads(task))]
        if mode == "segment":
            return Samples(self.embeddings, labels[self.song], self.song, self.weight)
        means = song_means(self.embeddings, self.song, self.weight, np.float32)
        songs = len(labels)
        return Samples(means, labels, np.arange(songs), np.ones(songs, np.float32))


def song_means(
    values: npt.NDArray[Any], song: IntArray, weight: FloatArray, dtype: npt.DTypeLike = np.float64
) -> npt.NDArray[Any]:
    """Weighted mean over each song's samples: (n, ...) with rising song numbers -> (N, ...).

    Args:
        weight: (n,) weight of each sample in its song.
        dtype: of the sums.
    """
    starts = np.flatnonzero(np.diff(song, prepend=-1))
    shape = -1, *[1] * (values.ndim - 1)
    if not (weight == 1).all():  # else the product is a copy of what may be gigabytes
        values = values * weight.reshape(shape)
    sums = np.add.reduceat(values, starts, axis=0, dtype=dtype)
    return np.asarray(sums / np.add.reduceat(weight, starts, dtype=dtype).reshape(shape))


@dataclass
class Data:
    """The splits of a data set, and what made their embeddings."""

    splits: dict[str, Split]
    source: EmbeddingSource
    task: str

    def __getitem__(self, split: str) -> Split:
        return self.splits[split]

    def familiarity(self, pooling: LayerPooling) -> Familiarity | None:
        """Statistics of the training songs' (N, W) embeddings; None for fewer than 100 songs.

        Args:
            pooling: pools the embeddings where the splits hold layer embeddings.
        """
        features = self["train"].samples("song", "popularity").features
        if features.ndim == 2:
            return self._familiarity
        with torch.no_grad():
            return fit_familiarity(pooling.cpu()(torch.as_tensor(features).float()).numpy())

    @cached_property
    def _familiarity(self) -> Familiarity | None:
        return fit_familiarity(self["train"].samples("song", "popularity").features)

    @property
    def songs(self) -> dict[str, int]:
        """Number of songs of each split."""
        return {name: len(split.audio_ids) for name, split in self.splits.items()}

    @cached_property
    def digest(self) -> str:
        """A hash of every embedding, label and name: a resumed run must have the same."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update("\n".join([name, *split.audio_ids]).encode())
            for values in (split.embeddings, split.song, split.weight, split.labels):
                digest.update(np.ascontiguousarray(values).view(np.uint8).data)
        return digest.hexdigest()


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of a data set's three splits."""
    return {split: folder / split for split in SPLITS}


def load_training_data(
    folder: Path,
    task: str = "full",
    *,
    layers: bool = False,
    teacher_file: Path | None = None,
) -> Data:
    """The three splits of a data set, checked.

    Args:
        layers: read the layer embeddings, for training the layer pooling.
        teacher_file: table of aesthetic labels per song, in place of the shards' own.
    """
    teacher = read_teacher(teacher_file) if teacher_file else None
    folders = split_folders(folder)
    return load_data(folders, task, layers=layers, teacher=teacher)


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
    source = source or next(iter(recorded), EmbeddingSource.published())
    splits = {}
    for split, found in files.items():
        if found:
            reader = SplitReader(split, task, source, layers, teacher)
            read = reader.read(found)
            problems += reader.problems
            if read is not None:
                splits[split] = read
    for first, second in combinations(splits, 2):  # such a song is tested on what it trained
        shared = set(splits[first].audio_ids) & set(splits[second].audio_ids)
        if shared:
            problems.append(f"{first} and {second} share the songs {listed(sorted(shared), 4)}")
    if problems:
        raise DataError.listing("the training data cannot be used", problems)
    return Data(splits, source, task)


def recorded_sources(files: Sequence[Path]) -> list[EmbeddingSource]:
    """What the shards say made them, each once; published shards stand for MERT-v1-95M."""
    sources: list[EmbeddingSource] = []
    for file in files:
        try:
            metadata = pq.read_metadata(file).metadata
        except (OSError, ValueError):
            continue  # reported when the file is read
        source = EmbeddingSource.from_metadata(metadata) or EmbeddingSource.published()
        if not any(source.same_embeddings(known) for known in sources):
            sources.append(source)
    return sources


@dataclass
class SplitReader:
    """Reads one split's shards and notes everything that is wrong with them."""

    split: str
    task: str
    source: EmbeddingSource
    layers: bool
    teacher: TeacherScores | None
    problems: list[str] = field(default_factory=list)

    @property
    def column(self) -> str:
        """The column that is read."""
        return "layer_embeddings" if self.layers else "segment_embedding"

    def read(self, files: Sequence[Path]) -> Split | None:
        """The split, or None where there is a problem."""
        width, dtype = self.source.model_config().width, np.float16 if self.layers else np.float32
        shape = (len(self.source.pooling_weight), width) if self.layers else (width,)
        blocks: list[npt.NDArray[Any]] = []
        tables: list[pa.Table] = []
        for file in files:
            table = self._table(file)
            if table is not None:
                values, wrong = list_values(table[self.column], shape)
                self._note(*(f"{self.column}: {text}" for text in wrong), file=file)
                blocks.append(values.astype(dtype, copy=False))
                tables.append(table.drop_columns([self.column]))
        if not tables:
            return None
        rows = pa.concat_tables(tables, promote_options="permissive")
        codes = rows["audio_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        if len(rows) == 0 or codes.null_count:
            count = codes.null_count
            self._note(f"{count} rows without audio_id" if count else "no rows")
            return None
        song, audio_ids = np.asarray(codes.indices, np.int64), codes.dictionary.to_pylist()
        order = np.lexsort((self._numbers_of_segments(rows), song))
        rows, song = rows.take(order), song[order]
        labels = self._labels(rows, song, audio_ids)
        weight = self._weights(rows, song)
        if self.problems:
            return None
        values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        if not np.array_equal(order, np.arange(len(order))):
            values = values[order]
        return Split(values, song, weight, labels, audio_ids)

    def _note(self, *problems: str, file: Path | None = None) -> None:
        where = self.split if file is None else f"{self.split}/{file.name}"
        self.problems += [f"{where}: {problem}" for problem in problems]

    def _table(self, file: Path) -> pa.Table | None:
        names = ["audio_id", "segment_id", *POPULARITY_HEADS, self.column]
        if self.task == "full" and self.teacher is None:
            names.append("songeval_scores")
        try:
            present = set(pq.read_schema(file).names)
            missing = [name for name in names if name not in present]
            for name in missing:
                why = " (task full needs it)" if name == "songeval_scores" else ""
                self._note(f"no column {name}{why}", file=file)
            names += [WEIGHT] if WEIGHT in present else []
            return None if missing else pq.read_table(file, columns=names)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
            self.problems.append(f"{self.split}/{file.name} cannot be read: {error}")
            return None

    def _numbers_of_segments(self, rows: pa.Table) -> IntArray:
        """(R,) number at the end of each `segment_id`."""
        segment = rows["segment_id"].cast(pa.string())
        repeats = len(rows) - len(pc.unique(segment))
        if repeats:
            self._note(f"{repeats} rows repeat a segment_id")
        numbers = pc.struct_field(pc.extract_regex(segment, r"_(?P<number>\d{1,9})$"), "number")
        return np.asarray(pc.fill_null(numbers.cast(pa.int64()), 0), np.int64)

    def _labels(self, rows: pa.Table, song: IntArray, audio_ids: list[str]) -> FloatArray:
        """(N, H) labels, checked: present, finite, in range, one per song."""
        columns = {head: _numbers(rows[head]) for head in POPULARITY_HEADS}
        if self.task == "full":
            columns |= self._aesthetic(rows, audio_ids)
        first = np.searchsorted(song, np.arange(len(audio_ids)))
        for head, values in columns.items():
            (low, high), finite, of_song = (
                head_range(head),
                np.isfinite(values),
                values[first][song],
            )
            outside = np.unique(values[finite & ((values < low) | (values > high))])
            shown = listed([f"{value:g}" for value in outside], limit=4)
            differing = int((finite & np.isfinite(of_song) & (values != of_song)).sum())
            missing = int((~finite).sum())
            if missing:
                self._note(f"{head} is missing, NaN or infinite in {missing} rows")
            if len(outside):
                self._note(f"{head} outside [{low:g}, {high:g}]: {shown}")
            if differing:
                self._note(f"{head} differs between segments of a song in {differing} rows")
        return np.stack([values[first] for values in columns.values()], axis=1).astype(np.float32)

    def _weights(self, rows: pa.Table, song: IntArray) -> FloatArray:
        """(R,) weight of each row in its song, 1 for the largest of a song; equal where absent.

        Relative to the largest, so that songs of equal weights have sums without rounding.
        """
        if WEIGHT not in rows.column_names:
            return np.ones(len(song), np.float32)
        shares = _numbers(rows[WEIGHT])
        largest = np.maximum.reduceat(shares, np.flatnonzero(np.diff(song, prepend=-1)))
        if not ((shares >= 0).all() and (largest > 0).all() and np.isfinite(largest).all()):
            self._note(f"{WEIGHT} is missing or negative in a row, or 0 in all rows of a song")
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(shares / largest[song], np.float32)

    def _aesthetic(self, rows: pa.Table, audio_ids: list[str]) -> dict[str, DoubleArray]:
        """Aesthetic labels per row, from the teacher or from `songeval_scores`."""
        if self.teacher is None:
            values, wrong = parse_songeval(rows["songeval_scores"])
            self._note(*(f"songeval_scores: {text}" for text in wrong))
            return dict(zip(AESTHETIC_HEADS, values.T, strict=True))
        teacher = self.teacher
        absent = [name for name in audio_ids if name not in teacher]
        if absent:
            self._note(f"no teacher scores for {listed(absent, 4)}")
        by_row = [teacher.get(name, {}) for name in rows["audio_id"].to_pylist()]
        return {h: np.array([row.get(h, np.nan) for row in by_row]) for h in AESTHETIC_HEADS}


def _numbers(column: pa.ChunkedArray) -> DoubleArray:
    """A column as floats, null as NaN."""
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    except pa.ArrowInvalid:
        return np.full(len(column), np.nan)
