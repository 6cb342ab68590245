"""Manifests: which labels their songs get, and every problem found together."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_reward.data.manifest import read_manifest
from apex_reward.errors import DataError
from apex_reward.files.tables import write_table

TEACHER = {"1": {"clarity": 2.0}, "b": {"clarity": 4.0}}


def test_labels_of_the_manifest_and_of_the_teacher(tmp_path: Path) -> None:
    rows = [
        {"audio_id": "1", "path": "a.wav", "split": "val", "platform": "suno", "clarity": 5.0,
         "score_likes": 7.0, "note": "x"},
        {"audio_id": "b", "path": "b.wav", "split": None, "platform": None, "clarity": 1.0,
         "score_likes": None, "note": "y"},
    ]  # fmt: skip
    write_table(tmp_path / "m.jsonl", rows)
    first, second = read_manifest(tmp_path / "m.jsonl")
    assert (first.audio_id, first.path, first.split) == ("1", "a.wav", "val")
    assert first.labels == {"platform": "suno", "clarity": 5.0, "score_likes": 7.0}
    assert (second.split, second.labels) == ("train", {"clarity": 1.0})
    taught = read_manifest(tmp_path / "m.jsonl", TEACHER)
    assert [song.labels["clarity"] for song in taught] == [2.0, 4.0]
    assert taught[0].labels["score_likes"] == 7.0


def test_songs_without_splits_are_trained_on(tmp_path: Path) -> None:
    write_table(tmp_path / "m.csv", [{"audio_id": 1, "path": "a.wav"}])
    (song,) = read_manifest(tmp_path / "m.csv", TEACHER)
    assert (song.audio_id, song.split, song.labels) == ("1", "train", {"clarity": 2.0})


def test_problems_are_counted(tmp_path: Path) -> None:
    rows = [{"audio_id": name, "path": "a.wav"} for name in ("x", "x", "b", None, "x")]
    rows.append({"audio_id": "y", "path": ""})
    write_table(tmp_path / "m.jsonl", rows)
    with pytest.raises(DataError) as error:
        read_manifest(tmp_path / "m.jsonl", TEACHER)
    assert [line.strip(" -") for line in str(error.value).splitlines()[1:]] == [
        "2 rows lack audio_id or path",
        "2 audio_ids repeat: x",
        "no teacher scores for x, y",
    ]
    (tmp_path / "n.csv").write_text("audio_id,path\n")
    with pytest.raises(DataError, match="it has no rows"):
        read_manifest(tmp_path / "n.csv")
