"""Teacher labels: files and callables, checked before they are used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest

from apex_reward.data.teacher import call_teacher, parse_songeval, read_teacher
from apex_reward.errors import DataError
from apex_reward.files.tables import write_table
from apex_reward.scores.apex import AESTHETIC_HEADS

GOOD = {head: 1.0 + i for i, head in enumerate(AESTHETIC_HEADS)}


def test_songs_are_named_by_id_or_by_file(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"audio_id": "x", **GOOD}])
    write_table(tmp_path / "b.jsonl", [{"path": "d/x.mp3", **GOOD}])
    assert read_teacher(tmp_path / "a.csv") == read_teacher(tmp_path / "b.jsonl") == {"x": GOOD}


def test_one_bad_row_costs_no_other(tmp_path: Path) -> None:
    table = [
        {"audio_id": "x", **GOOD, "clarity": 5.5},
        {"audio_id": "y", **GOOD, "coherence": "high"},
        {"audio_id": "z", **GOOD, "musicality": "2"},
        {"audio_id": "w", **GOOD},
        {"audio_id": "w", **GOOD},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    assert read_teacher(tmp_path / "a.jsonl") == {
        "x": {"error": "clarity is 5.5; expected 1 to 5"},
        "y": {"error": "coherence is missing or unreadable; expected 1 to 5"},
        "z": {**GOOD, "musicality": 2.0},
        "w": {"error": "there twice"},
    }


def test_missing_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"audio_id": "x", "clarity": 2.0}])
    with pytest.raises(DataError, match="no column coherence, musicality"):
        read_teacher(tmp_path / "a.csv")


def test_callable() -> None:
    paths = [Path("a.wav"), Path("b.wav")]
    assert call_teacher(lambda given: [GOOD for _ in given], paths) == [GOOD, GOOD]
    with pytest.raises(DataError, match="1 results for 2 songs"):
        call_teacher(lambda given: [GOOD], paths)
    found = call_teacher(lambda given: [{**GOOD, "naturalness": 9}, {"error": "lost"}], paths)
    assert found == [{"error": "naturalness is 9; expected 1 to 5"}, {"error": "lost"}]


def test_songeval_column_as_text_or_struct() -> None:
    text = pa.chunked_array([[json.dumps(GOOD), None, "[1]", "{not json"]])
    scores, problems = parse_songeval(text)
    assert scores[0].tolist() == list(GOOD.values())
    assert problems == ["2 values are not an object of five scores"]
    capitals = {head.capitalize(): value for head, value in GOOD.items()}
    assert parse_songeval(pa.chunked_array([[json.dumps(capitals)]]))[0][0].tolist() == [
        *GOOD.values()
    ]
    struct, problems = parse_songeval(pa.chunked_array([pa.array([GOOD])]))
    assert struct[0].tolist() == list(GOOD.values())
    assert problems == []


def test_a_song_may_lack_one_score_of_the_column() -> None:
    rows = [{**GOOD, "clarity": None}, {**GOOD, "clarity": "high"}]
    scores, problems = parse_songeval(pa.chunked_array([[json.dumps(row) for row in rows]]))
    lacking = [None if head == "clarity" else GOOD[head] for head in AESTHETIC_HEADS]
    assert [None if math.isnan(value) else value for value in scores[0]] == lacking
    assert [math.isnan(value) for value in scores[1]] == [True] * 5
    assert problems == ["1 values are not an object of five scores"]
