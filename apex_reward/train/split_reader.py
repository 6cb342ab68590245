"""Read one split's shards into arrays and note everything that is wrong with them.

Shape key: R = segments, N = songs, L = layers, W = embedding width, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from apex_reward.data.shards import EmbeddingSource, FloatArray, list_values
from apex_reward.data.teacher import TeacherScores, parse_songeval
from apex_reward.errors import listed
from apex_reward.scores.apex import AESTHETIC_HEADS, POPULARITY_HEADS, head_range
from apex_reward.train.split import IntArray, Split

if TYPE_CHECKING:
    import pyarrow as pa

DoubleArray = npt.NDArray[np.float64]
WEIGHT = "segment_weight"


class SplitReader:
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
        weight = self._weights(rows, order, song)
        if self.problems:
            return None
        values = embeddings[0] if len(embeddings) == 1 else np.concatenate(embeddings)
        if not np.array_equal(order, np.arange(len(order))):
            values = values[order]
        return Split(values, song, weight, labels, audio_ids)

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
            columns = self._columns() + [name for name in (WEIGHT,) if name in present]
            return None if missing else pq.read_table(file, columns=columns)
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

    def _weights(self, rows: pa.Table, order: IntArray, song: IntArray) -> FloatArray:
        """(R,) what each row counts in its song, 1 for the largest of a song; equal where absent.

        Relative to the largest, so that songs of equal shares have sums without rounding.
        """
        if WEIGHT not in rows.column_names:
            return np.ones(len(order), np.float32)
        shares = _numbers(rows[WEIGHT])[order]
        wrong = int((~np.isfinite(shares) | (shares < 0)).sum())
        largest = np.maximum.reduceat(shares, np.flatnonzero(np.diff(song, prepend=-1)))
        if wrong:
            self.problems.append(f"{self.split}: {WEIGHT} is missing or negative in {wrong} rows")
        elif not largest.all():
            empty = int((largest == 0).sum())
            self.problems.append(f"{self.split}: {WEIGHT} is 0 in all rows of {empty} songs")
        else:
            return np.asarray(shares / largest[song], np.float32)
        return np.ones(len(order), np.float32)

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
