"""`apex-reward demo` with one short song in place of three."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from apex_reward.cli import app
from apex_reward.demo import DAMAGES, SEVERITIES, damage, make_song, tour
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


@pytest.mark.slow
def test_the_folder_holds_audio_tables_and_plots(toured: tuple[Path, str]) -> None:
    folder, _ = toured
    song = make_song(11, 4.0)
    for name, wave in (("clean", song), ("timing-jitter-2", damage(song, "timing jitter", 2, 11))):
        samples, rate = soundfile.read(
            folder / "audio" / "song-1" / f"{name}.flac", dtype="float32"
        )
        assert rate == 24_000
        assert samples == pytest.approx(wave, abs=1e-4)
    assert len(list((folder / "audio" / "song-1").iterdir())) == 1 + len(DAMAGES) * len(SEVERITIES)
    for plot in ("damage.png", "gold.png"):
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


def test_gold_falls_while_the_reward_rises(toured: tuple[Path, str]) -> None:
    """Gradient steps bring a noisy song above the clean song's reward, and its share down."""
    folder, output = toured
    assert (folder / "audio" / "climbed.flac").is_file()
    rows = read_table(folder / "gradient.csv").to_pylist()
    assert [row["step"] for row in rows] == list(range(18))
    rewards, gold = ([row[name] for row in rows] for name in ("reward", "gold"))
    clean = read_jsonl(folder / "scores.jsonl")[0]["reward"]
    assert rewards[-1] > max(rewards[0] + 0.2, clean)
    assert gold[0] == pytest.approx(0.8, abs=0.02)  # noise 6 dB below the song
    assert gold[-1] < gold[9] - 0.05 < gold[0] - 0.1
    words = " ".join(output.split())
    assert f"rises from {rewards[0]:.2f} to {rewards[-1]:.2f}" in words
    assert f"falls from {gold[0]:.0%} to {gold[-1]:.0%}" in words


def test_progress_starts_with_the_command(toured: tuple[Path, str]) -> None:
    _, output = toured
    starts = [output.index(words) for words in ("The tour starts", "making songs: 25 of 25")]
    assert starts == sorted(starts)
    assert starts[1] < output.index("1. Songs") < output.index("scoring: 25 of 25")


def test_every_output_says_that_the_model_is_a_demonstration(toured: tuple[Path, str]) -> None:
    folder, output = toured
    assert "demonstration model" in output
    assert "not the published APEX" in " ".join(output.split())
    assert "demonstration" in json.loads((folder / "summary.json").read_text())["note"]


def test_help_names_the_default_folder() -> None:
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    assert "apex-demo" in result.output
