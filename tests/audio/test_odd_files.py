"""A folder of good songs and fifty odd files: a row for every one, and no good one lost."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from apex_reward.model import ApexReward
from apex_reward.rewards.rows import printable
from apex_reward.scores.apex import HEADS
from apex_reward.scoring import find_audio, score_songs
from tests.audio.odd_files import BROKEN, SPECIAL, UNUSUAL, write_odd_files
from tests.support import SEGMENT


@pytest.fixture(scope="module", params=[0, 2], ids=["in process", "workers"])
def rows(
    request: pytest.FixtureRequest,
    model: ApexReward,
    songs: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, Any]]:
    """The row of each file name."""
    folder = tmp_path_factory.mktemp("odd")
    write_odd_files(folder)
    for song in songs:
        shutil.copy(song, folder / f"good {Path(song).name}")
    inputs = [str(folder), str(folder / "missing.wav")]
    rows = list(score_songs(model, find_audio(inputs), workers=request.param))
    return {os.path.relpath(row["path"], folder): row for row in rows}


def test_every_file_has_its_row(rows: dict[str, dict[str, Any]], songs: list[str]) -> None:
    expected = {
        *(printable(name) for name in BROKEN),
        *UNUSUAL,
        *SPECIAL,
        *(f"good {Path(song).name}" for song in songs),
        "missing.wav",
    }
    assert set(rows) == expected
    assert len(BROKEN) + len(UNUSUAL) + len(SPECIAL) >= 30


def test_broken_files_say_why_and_have_no_scores(rows: dict[str, dict[str, Any]]) -> None:
    reasons = {name: reason for name, (_, reason) in BROKEN.items()} | SPECIAL
    for name, reason in {**reasons, "missing.wav": "does not exist"}.items():
        row = rows[printable(name)]
        assert row["error"] is not None, name
        assert reason in row["error"], name
        assert [row[column] for column in (*HEADS, "duration", "sample_rate")] == [None] * 9
        assert (row["segments"], row["flags"]) == (0, [])


def test_unusual_files_are_scored_with_their_flags(rows: dict[str, dict[str, Any]]) -> None:
    for name, (_, flags) in UNUSUAL.items():
        row = rows[name]
        assert row["error"] is None, name
        assert all(isinstance(row[head], float) for head in HEADS)
        assert set(row["flags"]) == flags, name
        assert row["segments"] == max(1, math.ceil(row["duration"] / SEGMENT))


def test_good_songs_score_as_without_them(
    rows: dict[str, dict[str, Any]], model: ApexReward, songs: list[str]
) -> None:
    for song in score_songs(model, songs):
        beside = rows[f"good {Path(song['path']).name}"]
        for name, value in song.items():
            if name in HEADS and value is not None:
                assert beside[name] == pytest.approx(value, abs=1e-4)
            elif name != "path":
                assert beside[name] == value
