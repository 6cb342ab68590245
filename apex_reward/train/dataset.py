"""Shards into memory: one block of embeddings per split, every problem found before training.

Shape key: R = segments, N = songs, L = layers, W = embedding width, H = heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from apex_reward.data.shards import SPLITS, EmbeddingSource, FloatArray, list_values
from apex_reward.data.teacher import TeacherScores, parse_songeval
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.heads import AESTHETIC_HEADS, POPULARITY_HEADS, head_range, task_heads

if TYPE_CHECKING:
    import pyarrow as pa

Mode = Literal["song", "segment"]
MODES: tuple[str, ...] = get_args(Mode)
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
            reader = _SplitReader(split, task, source, layers, teacher)
            loaded[split] = reader.read(found)
            problems += reader.problems
    splits = {split: data for split, data in loaded.items() if data is not None}
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


class _SplitReader:
    """Reads one split's shards and notes what is wrong with them."""

    def __init__(
        self,
        split: str,
        task: str,
        source: EmbeddingSource,
        layers: bool,
        teacher: TeacherScores | None,
    ) -> None:
        self.split, self.task, self.teacher = split, task, teacher
        width = source.model_config().width
        self.column = "layer_embeddings" if layers else "segment_embedding"
        self.shape = (len(source.pooling_weight), width) if layers else (width,)
        self.dtype = np.float16 if layers else np.float32
        self.problems: list[str] = []

    def read(self, files: Sequence[Path]) -> Split | None:
        """The split, or None where there is a problem."""
        embeddings: list[npt.NDArray[np.floating]] = []
        tables = []
        for file in files:
            table = self._table(file)
            if table is None:
                continue
            values, wrong = list_values(table[self.column], self.shape)
            self.problems += [f"{self._where(file)}: {self.column}: {text}" for text in wrong]
            embeddings.append(values.astype(self.dtype, copy=False))
            tables.append(table.drop_columns([self.column]))
        if not tables:
            return None
        import pyarrow as pa

        rows = pa.concat_tables(tables, promote_options="permissive")
        if len(rows) == 0:
            self.problems.append(f"{self.split}: no rows")
            return None
        songs = self._songs(rows)
        if songs is None:
            return None
        order, song, audio_ids = songs
        labels = self._labels(rows, order, song, audio_ids)
        if self.problems:
            return None
        values = embeddings[0] if len(embeddings) == 1 else np.concatenate(embeddings)
        if not np.array_equal(order, np.arange(len(order))):
            values = values[order]
        return Split(values, song, labels, audio_ids)

    def _where(self, file: Path) -> str:
        return f"{self.split}/{file.name}"

    def _columns(self) -> list[str]:
        names = ["audio_id", "segment_id", *POPULARITY_HEADS, self.column]
        needs_teacher = self.task == "full" and self.teacher is None
        return [*names, "songeval_scores"] if needs_teacher else names

    def _table(self, file: Path) -> pa.Table | None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            present = set(pq.read_schema(file).names)
            missing = [name for name in self._columns() if name not in present]
            for name in missing:
                why = " (task full needs it)" if name == "songeval_scores" else ""
                self.problems.append(f"{self._where(file)}: no column {name}{why}")
            return None if missing else pq.read_table(file, columns=self._columns())
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
            self.problems.append(f"{self._where(file)} cannot be read: {error}")
            return None

    def _songs(self, rows: pa.Table) -> tuple[IntArray, IntArray, list[str]] | None:
        """Row order that brings a song's segments together, song numbers in it, names."""
        import pyarrow as pa
        import pyarrow.compute as pc

        codes = rows["audio_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        if codes.null_count:
            self.problems.append(f"{self.split}: {codes.null_count} rows without audio_id")
            return None
        segment = rows["segment_id"].cast(pa.string())
        repeats = len(rows) - len(pc.unique(segment))
        if repeats:
            self.problems.append(f"{self.split}: {repeats} rows repeat a segment_id")
        numbers = pc.struct_field(pc.extract_regex(segment, r"_(?P<number>\d{1,9})$"), "number")
        number = np.asarray(pc.fill_null(numbers.cast(pa.int64()), 0), np.int64)
        song = np.asarray(codes.indices, np.int64)
        order = np.lexsort((number, song))
        return order, song[order], codes.dictionary.to_pylist()

    def _labels(
        self, rows: pa.Table, order: IntArray, song: IntArray, audio_ids: list[str]
    ) -> FloatArray:
        """(N, H) labels, checked: present, finite, in range, one per song."""
        columns = {head: _numbers(rows[head]) for head in POPULARITY_HEADS}
        if self.task == "full":
            columns |= self._aesthetic(rows, audio_ids)
        first = np.searchsorted(song, np.arange(len(audio_ids)))
        labels = np.empty((len(audio_ids), len(columns)), np.float32)
        for position, (head, values) in enumerate(columns.items()):
            ordered = values[order]
            labels[:, position] = ordered[first]
            self._check_label(head, ordered, ordered[first][song])
        return labels

    def _check_label(self, head: str, values: DoubleArray, of_song: DoubleArray) -> None:
        low, high = head_range(head)
        missing = int((~np.isfinite(values)).sum())
        outside = np.unique(values[np.isfinite(values) & ((values < low) | (values > high))])
        differing = int((np.isfinite(values) & np.isfinite(of_song) & (values != of_song)).sum())
        if missing:
            self.problems.append(
                f"{self.split}: {head} is missing, NaN or infinite in {missing} rows"
            )
        if len(outside):
            shown = listed([f"{value:g}" for value in outside], limit=4)
            self.problems.append(f"{self.split}: {head} outside [{low:g}, {high:g}]: {shown}")
        if differing:
            self.problems.append(
                f"{self.split}: {head} differs between segments of a song in {differing} rows"
            )

    def _aesthetic(self, rows: pa.Table, audio_ids: list[str]) -> dict[str, DoubleArray]:
        """Aesthetic labels per row, from the teacher or from `songeval_scores`."""
        if self.teacher is None:
            values, wrong = parse_songeval(rows["songeval_scores"])
            self.problems += [f"{self.split}: songeval_scores: {text}" for text in wrong]
        else:
            absent = [name for name in audio_ids if name not in self.teacher]
            if absent:
                self.problems.append(f"{self.split}: no teacher scores for {listed(absent, 4)}")
            by_row = [self.teacher.get(name, {}) for name in rows["audio_id"].to_pylist()]
            values = np.array(
                [[scores.get(head, np.nan) for head in AESTHETIC_HEADS] for scores in by_row]
            )
        return {head: values[:, i] for i, head in enumerate(AESTHETIC_HEADS)}


def _numbers(column: pa.ChunkedArray) -> DoubleArray:
    """A column as floats, null as NaN."""
    import pyarrow as pa

    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    except pa.ArrowInvalid:
        return np.full(len(column), np.nan)


def _songs_on_two_sides(splits: Mapping[str, Split]) -> list[str]:
    """A song in two splits would be tested on what it was trained on."""
    names = {split: set(data.audio_ids) for split, data in splits.items()}
    return [
        f"{first} and {second} share the songs {listed(sorted(names[first] & names[second]), 4)}"
        for first, second in combinations(names, 2)
        if names[first] & names[second]
    ]
