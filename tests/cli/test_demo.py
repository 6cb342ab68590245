"""`apex-reward demo`, with one short song in place of three, through the real scoring path."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from apex_reward.cli import app
from apex_reward.demo import DAMAGES, SEVERITIES, damage, make_song, tour
from apex_reward.demo.step_gold import best_of, known_quality
from apex_reward.files.tables import read_jsonl, read_table
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("tour") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour, "SONG_SEEDS", (11,))
        patch.setattr(tour, "SONG_SECONDS", 4.0)
        result = CliRunner().invoke(app, ["demo", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_the_folder_holds_audio_tables_and_plots(toured: tuple[Path, str]) -> None:
    folder, _ = toured
    song = make_song(11, 4.0)
    for name, wave in (("clean", song), ("timing-jitter-2", damage(song, "timing jitter", 2, 11))):
        heard, rate = soundfile.read(folder / "audio" / "song-1" / f"{name}.flac", dtype="float32")
        assert rate == 24_000
        assert heard == pytest.approx(wave, abs=1e-4)
    assert len(list((folder / "audio" / "song-1").iterdir())) == 1 + len(DAMAGES) * len(SEVERITIES)
    for plot in ("damage.png", "gradient.png", "gold.png"):
        assert (folder / plot).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*.tmp"))


def test_scores_are_the_rows_of_the_score_command(toured: tuple[Path, str]) -> None:
    folder, _ = toured
    rows = read_jsonl(folder / "scores.jsonl")
    assert len(rows) == 25
    for row in rows:
        assert row["model"] == "apex-tiny (demonstration)"
        assert row["error"] is None
        assert row["duration"] == pytest.approx(4.0)
        assert row["segments"] == 1
        assert all(1 <= row[head] <= 5 for head in AESTHETIC_HEADS)
        mean = sum((row[head] - 1) / 4 for head in AESTHETIC_HEADS) / 5
        assert row["reward"] == pytest.approx(mean, abs=1e-5)
    target = folder.parent / "again.jsonl"
    clean = str(folder / "audio" / "song-1" / "clean.flac")
    again = CliRunner().invoke(
        app, ["score", clean, "--model", "apex-tiny", "--output", str(target), "--workers", "0"]
    )
    assert again.exit_code == 0, again.output
    (expected,) = read_jsonl(target)
    assert [rows[0][head] for head in HEADS] == pytest.approx(
        [expected[head] for head in HEADS], abs=1e-4
    )


def test_the_table_is_that_of_the_scores(toured: tuple[Path, str]) -> None:
    folder, output = toured
    table = read_table(folder / "damage.csv").to_pylist()
    assert [row["damage"] for row in table] == [*DAMAGES, "all"]
    rows = {(r["damage"], r["severity"]): r for r in read_jsonl(folder / "scores.jsonl")}
    mean = {key: sum(row[h] for h in AESTHETIC_HEADS) / 5 for key, row in rows.items()}
    assert table[0]["drop_3"] == pytest.approx(mean["clean", 0] - mean["noise", 3], abs=1e-6)
    won = [mean["clean", 0] > mean["noise", s] for s in SEVERITIES]
    assert table[0]["pairs_won"] == pytest.approx(sum(won) / 3)
    assert f"{table[-1]['pairs_won']:.0%}" in output


def test_gradient_steps_raise_the_score(toured: tuple[Path, str]) -> None:
    folder, output = toured
    assert (folder / "audio" / "climbed.flac").is_file()
    after = output.split("Gradient: raising")[1]
    rows = [line.split() for line in after.splitlines() if re.match(r" *\d+  ", line)]
    rewards = [float(row[1]) for row in rows[:9]]
    assert rewards[-1] > rewards[0] + 0.02


def test_best_of_n_by_hand() -> None:
    """Of 4 candidates in pairs: the worst never wins, the others in 1, 2 and 3 of 6."""
    proxy = np.array([0.3, 0.1, 0.4, 0.2])
    gold = np.array([10.0, 1.0, 5.0, 3.0])
    pairs = (3 + 2 * 10 + 3 * 5) / 6
    assert best_of(gold, proxy, (1, 2, 4)) == pytest.approx([19 / 4, pairs, 5.0])
    assert known_quality("clean", 0) == pytest.approx(0.92)
    assert known_quality("detuning", 3) == pytest.approx(0.92 - 0.84 * (1.0 + 0.9 + 3 * 0.7) / 5)


def test_the_picture_of_gold_is_of_the_members(toured: tuple[Path, str]) -> None:
    folder, output = toured
    rows = read_jsonl(folder / "scores.jsonl")
    members = np.array([[row[f"reward_member{i}"] for i in range(8)] for row in rows])
    assert [row["reward"] for row in rows] == pytest.approx(members.mean(axis=1), abs=1e-5)
    words = " ".join(output.split())
    for name, proxy in (("one member", members[:, 0]), ("mean of 8", members.mean(axis=1))):
        (best,) = best_of(proxy, proxy, (16,))
        assert f"{name}: proxy {proxy.mean():.2f} -> {best:.2f}, gold" in words


def test_every_output_says_that_the_model_is_a_demonstration(toured: tuple[Path, str]) -> None:
    folder, output = toured
    assert "demonstration model" in output
    assert "not the published APEX" in " ".join(output.split())
    assert "demonstration" in json.loads((folder / "summary.json").read_text())["note"]


def test_help_names_the_default_folder() -> None:
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    assert "apex-demo" in result.output
