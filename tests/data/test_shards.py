"""Training shards: their columns, and what is said of columns that hold something else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from apex_reward.data.shards import EmbeddingSource, SongRows, list_column, list_values, shard_table

WANTED = "expected lists of 2 numbers, none of them null"
SOURCE = EmbeddingSource({"encoder_name": "a"}, (0.5, 0.25), -1.0)


def test_a_file_that_names_no_source_has_none() -> None:
    assert EmbeddingSource.from_metadata(None) is None
    assert EmbeddingSource.from_metadata({}) is None
    assert EmbeddingSource.from_metadata({b"pandas": b"{}"}) is None
    assert EmbeddingSource.from_metadata({b"pandas": b"{}", **SOURCE.to_metadata()}) == SOURCE


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"pooling_weight": (0.5 * (1 + 5e-7), 0.25)}, True),
        ({"pooling_weight": (0.5 * (1 + 1e-5), 0.25)}, False),
        ({"pooling_weight": (0.5, 0.25, 0.0)}, False),
        ({"pooling_bias": -1.00001}, False),
    ],
)
def test_poolings_are_alike_to_float32_rounding(change: dict[str, object], same: bool) -> None:
    assert SOURCE.same_pooling(replace(SOURCE, **change)) is same


def test_segments_of_songs_stand_below_each_other() -> None:
    two = np.arange(4, dtype=np.float32).reshape(2, 2)
    rows = shard_table(
        [
            SongRows("x", {"platform": "suno", "clarity": 2.0}, two[:, None], two, [0.75, 0.25]),
            SongRows("y", {"score_likes": 3.0}, two[:1, None], two[:1], [1.0]),
        ]
    ).to_pydict()
    assert rows["segment_id"] == ["x_1", "x_2", "y_1"]
    assert rows["platform"] == ["suno", "suno", None]
    assert rows["score_likes"] == [None, None, 3.0]
    assert rows["segment_weight"] == [0.75, 0.25, 1.0]
    assert rows["segment_embedding"] == [[0, 1], [2, 3], [0, 1]]
    assert rows["layer_embeddings"] == [[[0, 1]], [[2, 3]], [[0, 1]]]
    assert rows["songeval_scores"] == ['{"clarity": 2.0}', '{"clarity": 2.0}', None]


def test_nested_and_flat_lists_are_read_alike() -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    nested = pa.chunked_array([list_column(values[:1]), list_column(values[1:])])
    flat = pa.chunked_array([list_column(values.reshape(2, 6))])
    fixed = pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6)])
    for column in (nested, flat, fixed):
        found, problems = list_values(column, (2, 3))
        assert problems == []
        assert found.tolist() == values.tolist()


def test_a_column_without_rows_has_no_problem() -> None:
    for shape in ((2,), (4, 2)):
        column = pa.chunked_array([list_column(np.empty((0, *shape), np.float32))])
        found, problems = list_values(column, shape)
        assert (found.shape, problems) == ((0, *shape), [])


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[1.0, 2.0], None], f"2 values of double in 2 rows; {WANTED}"),
        ([[1.0, 2.0], [1.0, None]], f"4 values of double in 2 rows; {WANTED}"),
        ([[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]], f"6 values of double in 3 rows; {WANTED}"),
        ([[[1.0], [2.0]], [[1.0, 2.0], []]], f"4 values of double in 2 rows; {WANTED}"),
        ([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], f"6 values of double in 2 rows; {WANTED}"),
        ([1.0, 2.0, 3.0], f"3 values of double in 3 rows; {WANTED}"),
        ([["a", "b"]], f"2 values of string in 1 rows; {WANTED}"),
        ([[1.0, 2.0], [np.inf, np.nan], [1.0, np.nan]], "2 rows hold NaN or infinite values"),
    ],
)
def test_what_is_wrong_with_a_column_is_said(rows: list[object], problem: str) -> None:
    found, problems = list_values(pa.chunked_array([rows]), (2,))
    assert problems == [problem]
    assert found.shape == (0, 2)
