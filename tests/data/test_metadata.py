"""Metadata under one set of names, by hand for each preset."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apex_reward.data.metadata import (
    choose_columns,
    count_of,
    counts_of,
    read_metadata,
)
from apex_reward.errors import DataError
from apex_reward.files.tables import write_table

MAY = np.datetime64("2024-05-01", "us")


def songs_of(folder: Path, name: str, rows: list[dict[str, Any]], **how: Any) -> pd.DataFrame:
    write_table(folder / name, rows)
    return read_metadata(folder / name, **how)


def row_of(songs: pd.DataFrame, row: int = 0) -> tuple[Any, ...]:
    found = songs.iloc[row]
    texts = (found[name] for name in ("audio_id", "path", "platform"))
    counts = (None if math.isnan(found[name]) else found[name] for name in ("streams", "likes"))
    return *texts, *counts, None if pd.isna(found["released"]) else found["released"]


@pytest.mark.parametrize(
    ("row", "platform"),
    [
        ({"id": "a", "play_count": 7, "upvote_count": 3, "created_at": "2024-05-01"}, "suno"),
        ({"id": "a", "plays": 7, "likes": 3, "published_at": "2024-05-01"}, "udio"),
        ({"audio_id": "a", "streams": 7, "likes": 3, "released": "2024-05-01"}, ""),
    ],
)
def test_each_preset_gives_the_same_song(tmp_path: Path, row: dict, platform: str) -> None:
    assert row_of(songs_of(tmp_path, "mine.jsonl", [row])) == (
        "a",
        "a.mp3",
        platform,
        7.0,
        3.0,
        MAY,
    )
    named = songs_of(tmp_path, "mine.jsonl", [{**row, "platform": "own"}])
    assert named.platform.tolist() == ["own"]


def test_cells_that_are_missing(tmp_path: Path) -> None:
    rows = [
        {"id": "5", "path": None, "plays": None, "likes": -1, "published_at": None},
        {"id": None, "path": "x.wav", "plays": 0, "likes": 2.5, "published_at": "soon"},
        {"id": "c", "path": "", "plays": 1, "likes": 1, "published_at": "2999-01-01"},
    ]
    songs = songs_of(tmp_path, "a.jsonl", rows)
    assert row_of(songs, 0) == ("5", "5.mp3", "udio", None, None, None)
    assert row_of(songs, 1) == ("", "x.wav", "udio", 0.0, 2.5, None)
    assert row_of(songs, 2) == ("c", "c.mp3", "udio", 1.0, 1.0, None)
    assert songs.undated.tolist() == ["", "cannot be read", "in the future"]


def test_dates_of_every_form_agree(tmp_path: Path) -> None:
    """ISO dates are read together, the others one by one, and a bad one costs no other."""
    texts = ["2024-05-01", "2024-05-01T02:00:00+02:00", "2024-05-01 00:00:00Z", "1 May 2024"]
    texts += ["2024-05-01T00:00:00.000000", "20240501", "2024-02-30", "", None]
    songs = dated(tmp_path, pa.array(texts))
    assert songs.released[:6].tolist() == [MAY.item()] * 6
    assert songs.released[6:].isna().all()
    assert songs.undated.tolist() == [""] * 6 + ["cannot be read", "", ""]
    days = pa.array([MAY.item()], pa.timestamp("ns", "UTC"))
    assert dated(tmp_path, days).released.tolist() == [MAY.item()]


def dated(folder: Path, column: pa.Array) -> pd.DataFrame:
    counts = pa.array(range(len(column)))
    table = pa.table({"id": counts, "plays": counts, "likes": counts, "published_at": column})
    pq.write_table(table, folder / "dated.parquet")
    return read_metadata(folder / "dated.parquet")


def test_unreadable_counts_are_not_missing_ones() -> None:
    column = pa.chunked_array([["5", "many", None, "", " 7 ", "-1", "true", "1.2M", "n/a"]])
    values, bad = counts_of(column)
    assert [None if math.isnan(v) else v for v in values] == [
        5, None, None, None, 7, None, None, 1_200_000, None
    ]  # fmt: skip
    assert np.flatnonzero(bad).tolist() == [1, 6]
    assert counts_of(pa.chunked_array([[True, None]]))[1].tolist() == [True, False]
    assert counts_of(pa.chunked_array([[1.0, math.inf, math.nan, -2.0]]))[1].tolist() == [
        False, True, False, False
    ]  # fmt: skip


def test_columns_named_by_hand_go_over_the_preset_s(tmp_path: Path) -> None:
    row = {"id": "a", "key": "k", "plays": 7, "likes": 3, "hearts": 9, "where": "here"}
    how = {"columns": {"audio_id": "key", "likes": "hearts", "platform": "where"}}
    songs = songs_of(tmp_path, "a.jsonl", [row], **how)
    assert row_of(songs) == ("k", "k.mp3", "here", 7.0, 9.0, None)
    by_hand = {"audio_id": "key", "streams": "plays", "likes": "hearts"}
    names = ["key", "plays", "hearts"]
    assert choose_columns(Path("x"), names, "auto", by_hand)[0] == "udio"
    own = {**by_hand, "streams": "key"}
    assert choose_columns(Path("x"), ["key", "hearts"], "auto", own) == ("plain", own)
    assert choose_columns(Path("x"), ["key", "hearts"], "suno", own) == ("suno", own)


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(DataError, match=r"x\.csv has no column b, c; it has id, plays"):
        choose_columns(Path("x.csv"), ["id", "plays"], "auto", {"likes": "b", "streams": "c"})
    with pytest.raises(DataError, match=r"x\.csv has no column for likes; it has id, plays\. Name"):
        choose_columns(Path("x.csv"), ["id", "plays"], "udio", {})
    with pytest.raises(DataError, match="no column for streams, likes"):
        choose_columns(Path("x.csv"), ["id", "plays"], "suno", {})


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        ("12", 12), (3, 3), (0, 0), ("0", 0), (" 5 ", 5), (4.0, 4), ("12.", 12), (True, None),
        ("1,234", 1234), ("1,234,567", 1234567), ("1,204.5", 1204.5), ("381K", 381_000),
        ("381 k", 381_000), ("1.2M", 1_200_000), ("2.3M", 2_300_000), ("2B", 2e9), ("3b", 3e9),
        ("1,2M", None), ("1,2K", None), ("1,25 m", None), ("1,250K", 1_250_000), (None, None),
        ("", None), ("x", None),
        (-2, None), (-0.5, None), ("-2", None), (math.nan, None), (math.inf, None), ([], None),
        ("1,2", None), ("12,34", None), ("1,2345", None), ("12,34,567", None), ("1.2Q", None),
        ("K", None),
    ],
)  # fmt: skip
def test_counts_as_people_write_them(cell: object, count: float | None) -> None:
    assert count_of(cell) == count
