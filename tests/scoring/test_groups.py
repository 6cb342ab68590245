"""Groups of a result file: means with intervals, and a test that they are equal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.demo.songs import make_song
from apex_reward.errors import UsageError
from apex_reward.files.tables import read_rows, write_table
from apex_reward.scoring.groups import check_columns, write_groups
from apex_reward.scoring.inputs import Input


def write_scores(path: Path, shift: float, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {"path": f"{i}.wav", "language": ("en", "de", "fr")[i % 3], "a": float(rng.normal()),
         "b": float(rng.normal()) + shift * (i % 3 == 1), "error": None}
        for i in range(60)
    ]  # fmt: skip
    rows += [{"path": "x", "language": "en", "a": None, "b": None, "error": "no audio"}]
    rows += [{"path": "y", "language": None, "a": 9.0, "b": 9.0, "error": None}]
    write_table(path, rows)


def test_means_intervals_and_the_largest_gap(tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    write_scores(output, shift=3.0)
    words = write_groups(output, {"language": "language"}, ["a", "b"])
    rows = read_rows(tmp_path / "scores.groups.jsonl")
    assert [(row["figure"], row["group"], row["songs"]) for row in rows] == [
        (figure, group, 20) for figure in "ab" for group in ("de", "en", "fr")
    ]
    values = [row["b"] for row in read_rows(output) if row["language"] == "de"]
    shifted = rows[3]
    assert shifted["mean"] == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / 20**0.5
    assert shifted["upper"] - shifted["lower"] == pytest.approx(2 * half, rel=0.2)
    assert rows[0]["p_value"] > 0.05 > 1e-3 > shifted["p_value"]
    assert len(words) == 1
    assert words[0].startswith(f"b differs by language: {shifted['mean']:.3g} for de, ")


def test_equal_groups_are_rarely_called_different(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    said = 0
    for seed in range(40):
        write_scores(output, 0.0, seed)
        said += bool(write_groups(output, {"language": "language"}, ["a", "b"]))
    assert said <= 6


def test_songs_of_one_prompt_are_no_further_evidence(tmp_path: Path) -> None:
    """Ten alike songs of each of 20 prompts, whose language is chance: 20 values, not 200."""
    output, said = tmp_path / "scores.jsonl", 0
    for seed in range(40):
        levels = np.random.default_rng(seed).normal(size=20)
        rows = [
            {"path": f"{i}.wav", "language": ("en", "de")[i % 2], "prompt": f"p{i % 20}",
             "a": levels[i % 20] + i / 1e6, "error": None}
            for i in range(200)
        ]  # fmt: skip
        write_table(output, rows)
        said += bool(write_groups(output, {"language": "language"}, ["a"]))
    assert said <= 5
    write_table(output, [row | {"prompt": row["language"]} for row in rows])
    assert write_groups(output, {"language": "language"}, ["a"]) == []
    found = read_rows(tmp_path / "scores.groups.jsonl")
    assert [(row["songs"], row["p_value"]) for row in found] == [(100, None)] * 2


def test_a_column_that_no_list_has_is_named() -> None:
    with pytest.raises(UsageError, match="--by genre: no such column.*they have language"):
        check_columns(["genre"], [Input("a.wav", {"language": "en"})])


def test_the_command_writes_the_groups_of_a_list(tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        save_wav(tmp_path / f"{number}.wav", make_song(number, 2.0, 24_000), 24_000)
        kinds = {"duration": "short" if number else "long", "input.duration": "other"}
        rows.append({"audio": f"{number}.wav", **kinds})
    write_table(tmp_path / "list.jsonl", rows)
    output = tmp_path / "scores.jsonl"
    given = ["score", str(tmp_path / "list.jsonl"), "--model", "rulers", "--workers", "0"]
    result = CliRunner().invoke(app, [*given, "--by", "duration", "--output", str(output)])
    assert result.exit_code == 0, result.output
    groups = [json.loads(s) for s in (tmp_path / "scores.groups.jsonl").read_text().splitlines()]
    first = groups[:2]
    assert [(row["group"], row["figure"], row["songs"], row["mean"]) for row in first] == [
        ("long", "length", 1, 2.0), ("short", "length", 3, 2.0),
    ]  # fmt: skip
    assert len(groups) == 2 * 13
    result = CliRunner().invoke(app, [*given, "--by", "duration"])
    assert result.exit_code == 2


def test_songs_of_one_prompt_are_not_taken_for_many(tmp_path: Path) -> None:
    """A hundred songs of two prompts a group: they say nothing of other prompts."""
    rng = np.random.default_rng(0)
    rows = [
        {"path": f"{i}.wav", "language": "ab"[i % 2], "prompt": ("Calm  x", "calm x ", "y")[i % 3],
         "a": float(i % 2 + 0.1 * rng.normal()), "error": None}
        for i in range(100)
    ]  # fmt: skip
    write_table(tmp_path / "scores.jsonl", rows)
    assert write_groups(tmp_path / "scores.jsonl", {"language": "language"}, ["a"]) == []
    assert read_rows(tmp_path / "scores.groups.jsonl")[0]["p_value"] is None


@pytest.mark.parametrize("songs", [2, 4, 8])
def test_the_interval_of_few_songs_holds_the_truth(tmp_path: Path, songs: int) -> None:
    rng, output = np.random.default_rng(songs), tmp_path / "scores.jsonl"
    rows = [
        {"path": f"{n}_{i}", "draw": n, "a": float(rng.normal(1.0)), "error": None}
        for n in range(100)
        for i in range(songs)
    ]
    write_table(output, rows)
    write_groups(output, {"draw": "draw"}, ["a"])
    found = read_rows(tmp_path / "scores.groups.jsonl")
    assert sum(row["lower"] <= 1.0 <= row["upper"] for row in found) >= 86  # 95 expected
