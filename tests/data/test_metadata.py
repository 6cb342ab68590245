"""Metadata under one set of names, by hand for each preset."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from apex_reward.data.metadata import Song, choose_columns, count_of, read_metadata
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import write_table

MAY = datetime(2024, 5, 1, tzinfo=UTC)


def songs_of(folder: Path, name: str, rows: list[dict[str, Any]], **how: Any) -> list[Song]:
    write_table(folder / name, rows)
    return read_metadata(folder / name, **how)


@pytest.mark.parametrize(
    ("row", "platform"),
    [
        ({"id": "a", "play_count": 7, "upvote_count": 3, "created_at": "2024-05-01"}, "suno"),
        ({"id": "a", "plays": 7, "likes": 3, "published_at": "2024-05-01"}, "udio"),
        ({"id": "a", "plays": 7, "likes": 3, "created_at": "2024-05-01"}, "udio"),
        ({"song_id": "a", "listens": 7, "like_count": 3, "date": "2024-05-01"}, "mine"),
    ],
)
def test_each_preset_gives_the_same_song(tmp_path: Path, row: dict, platform: str) -> None:
    (song,) = songs_of(tmp_path, "mine.jsonl", [row])
    assert song == Song("a", "a.mp3", platform, 7.0, 3.0, MAY)
    (named,) = songs_of(tmp_path, "mine.jsonl", [{**row, "platform": "own"}])
    assert named.platform == "own"


def test_cells_that_are_missing(tmp_path: Path) -> None:
    rows = [
        {"id": 5, "path": None, "plays": None, "likes": -1, "published_at": None},
        {"id": None, "path": "x.wav", "plays": 0, "likes": 2.5, "published_at": "soon"},
        {"id": "c", "path": "", "plays": 1, "likes": 1, "published_at": "2999-01-01"},
    ]
    first, second, third = songs_of(tmp_path, "a.jsonl", [{**r, "id": r["id"] and str(r["id"])}
                                                          for r in rows])  # fmt: skip
    assert first == Song("5", "5.mp3", "udio", None, None, None)
    assert second == Song("", "x.wav", "udio", 0.0, 2.5, None, "cannot be read: soon")
    assert third == Song("c", "c.mp3", "udio", 1.0, 1.0, None, "in the future: 2999-01-01")


def test_columns_named_by_hand_go_over_the_preset_s(tmp_path: Path) -> None:
    row = {"id": "a", "key": "k", "plays": 7, "likes": 3, "hearts": 9, "where": "here"}
    how = {"columns": {"audio_id": "key", "likes": "hearts", "platform": "where"}}
    (song,) = songs_of(tmp_path, "a.jsonl", [row], **how)
    assert (song.audio_id, song.streams, song.likes, song.platform) == ("k", 7.0, 9.0, "here")
    by_hand = {"audio_id": "key", "streams": "plays", "likes": "hearts"}
    names = ["key", "plays", "hearts"]
    assert choose_columns(Path("x"), names, "auto", by_hand)[0] == "udio"
    own = {**by_hand, "streams": "key"}
    assert choose_columns(Path("x"), ["key", "hearts"], "auto", own) == ("plain", own)
    assert choose_columns(Path("x"), ["key", "hearts"], "suno", own) == ("suno", own)


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(UsageError, match="preset is 'spotify'; expected auto, suno, udio, plain"):
        choose_columns(Path("x.csv"), ["id"], "spotify", {})
    with pytest.raises(DataError, match=r"x\.csv has no column b, c; it has id, plays"):
        choose_columns(Path("x.csv"), ["id", "plays"], "auto", {"likes": "b", "streams": "c"})
    with pytest.raises(DataError, match=r"x\.csv has no column for likes; it has id, plays\. Name"):
        choose_columns(Path("x.csv"), ["id", "plays"], "udio", {})
    with pytest.raises(DataError, match="no column for streams, likes"):
        choose_columns(Path("x.csv"), ["id", "plays"], "suno", {})


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        ("12", 12), (3, 3), (0, 0), ("0", 0), (" 5 ", 5), (4.0, 4), ("12.", 12), (True, 1),
        ("1,234", 1234), ("1,234,567", 1234567), ("1,204.5", 1204.5), ("381K", 381_000),
        ("381 k", 381_000), ("1.2M", 1_200_000), ("2.3M", 2_300_000), ("2B", 2e9), ("3b", 3e9),
        ("1,2M", 1_200_000), ("1,2K", 1200), ("1,25 m", 1_250_000), ("1,250K", 1_250_000),
        ("1.5e3", 1500), ("1e+3", 1000), ("1e-3", None), (None, None), ("", None), ("x", None),
        (-2, None), (-0.5, None), ("-2", None), (math.nan, None), (math.inf, None), ([], None),
        ("1,2", None), ("12,34", None), ("1,2345", None), ("12,34,567", None), ("1.2Q", None),
        ("K", None),
    ],
)  # fmt: skip
def test_counts_as_people_write_them(cell: object, count: float | None) -> None:
    assert count_of(cell) == count
