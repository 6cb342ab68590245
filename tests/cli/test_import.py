"""`apex-reward import`, then `score` with what it wrote: the published figures end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from apex_reward.audio import load_audio, save_wav
from apex_reward.cli import app
from apex_reward.model import ApexReward
from apex_reward.scores.apex import HEADS
from tests.muq_support import SONGEVAL_FIGURES, golden_config, write_head, write_muq
from tests.support import GOLDEN, golden_song, write_best_model, write_mert_folder

FIGURES = json.loads((GOLDEN / "golden.json").read_text())["models"]
REAL_SONGS = ("music_arena_debug_a.mp3", "music_arena_debug_b.mp3", "songeval_example.mp3")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published files of the small golden model with all heads."""
    folder = tmp_path_factory.mktemp("published")
    figures = FIGURES["small_full_2"]
    write_mert_folder(folder / "mert", figures["mert_config_overrides"])
    write_best_model(folder / "best_model.pt", figures["task"], figures["n_shared"])
    return folder


def test_import_then_score_gives_the_published_figures(small: Path, tmp_path: Path) -> None:
    model = tmp_path / "new" / "model"
    result = run(
        "import", "--predictor", small / "best_model.pt", "--encoder", small / "mert",
        "--output", model,
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    assert {path.name for path in model.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    clip = FIGURES["small_full_2"]["clips"]["clip_3"]
    made = (clip["seed"], clip["sample_rate"], clip["channels"], clip["seconds"])
    song = tmp_path / "clip_3.wav"
    save_wav(song, golden_song(*made), clip["sample_rate"])
    result = run("score", song, "--model", model, "--output", tmp_path / "f.jsonl")
    assert result.exit_code == 0
    (row,) = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    scores = {head: row[head] for head in HEADS}
    assert scores == pytest.approx(clip["scores"], abs=1e-4)
    assert row["segments"] == clip["segments"]


def test_what_is_there_already_is_not_touched(small: Path, tmp_path: Path) -> None:
    given = ("import", "--predictor", small / "best_model.pt", "--encoder", small / "mert")
    (tmp_path / "note").write_text("mine")
    for output in (tmp_path, tmp_path / "note"):
        result = run(*given, "--output", output)
        assert result.exit_code == 2
        assert "is there already" in result.stderr
    assert (tmp_path / "note").read_text() == "mine"


def test_files_that_are_no_such_checkpoint_leave_nothing(small: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    torch.save({"model_state": {"weight": torch.zeros(2)}}, bad)
    for predictor, encoder, message in (
        (bad, small / "mert", "is not an APEX predictor"),
        (small / "best_model.pt", tmp_path / "none", "does not exist"),
        (small / "best_model.pt", small, "config.json"),
    ):
        result = run(
            "import", "--predictor", predictor, "--encoder", encoder, "--output", tmp_path / "out"
        )
        assert result.exit_code == 1
        assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def score_real_songs(model: str | Path, folder: Path, output: Path) -> None:
    given = ("--model", model, "--segments", "--output", output)
    result = run("score", folder / "audio", *given)
    assert result.exit_code == 0, result.stderr


def check_real_rows(rows: list[dict[str, object]]) -> None:
    assert [Path(str(row["path"])).name for row in rows] == list(REAL_SONGS)
    assert [row["segments"] for row in rows] == [1, 1, 5]
    assert [row["duration"] for row in rows] == pytest.approx([30.0, 30.0, 144.4])
    assert [row["sample_rate"] for row in rows] == [44_100, 44_100, 48_000]
    assert all(isinstance(row[head], float) for head in HEADS for row in rows)


@pytest.mark.slow
def test_real_songs_with_the_embedded_model(shared_folder: Path, tmp_path: Path) -> None:
    for ending in ("jsonl", "csv", "parquet"):
        score_real_songs("apex-tiny", shared_folder, tmp_path / f"f.{ending}")
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    check_real_rows(rows)
    assert pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist() == rows
    with open(tmp_path / "f.csv", newline="") as file:
        for cell, row in zip(csv.DictReader(file), rows, strict=True):
            assert [float(cell[head]) for head in HEADS] == [row[head] for head in HEADS]
    parts = pyarrow.parquet.read_table(tmp_path / "f.segments.parquet").to_pylist()
    assert [part["segment"] for part in parts] == [1, 1, 1, 2, 3, 4, 5]
    model = ApexReward.from_pretrained("apex-tiny")
    for row in rows:
        song = load_audio(str(row["path"]))
        with torch.no_grad():
            alone = model(torch.from_numpy(song.samples)[None], song.sample_rate).rows()[0]
        assert {name: row[name] for name in alone} == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_real_songs_with_a_full_size_import(shared_folder: Path, tmp_path: Path) -> None:
    write_mert_folder(tmp_path / "mert", {})
    write_best_model(tmp_path / "best_model.pt", "full", 2)
    given = ("--predictor", tmp_path / "best_model.pt", "--encoder", tmp_path / "mert")
    assert run("import", *given, "--output", tmp_path / "model").exit_code == 0
    score_real_songs(tmp_path / "model", shared_folder, tmp_path / "f.parquet")
    check_real_rows(pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist())


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_songeval_imported_and_scored_gives_the_published_figures(
    size: str, tmp_path: Path
) -> None:
    figures = SONGEVAL_FIGURES[size]
    config = golden_config(figures["overrides"])
    head = write_head(tmp_path / "ckpt" / "model.safetensors", config)
    muq = write_muq(tmp_path / "muq", config)
    done = run("import", "--kind", "songeval", "--predictor", head, "--encoder", muq,
               "--output", tmp_path / "model")  # fmt: skip
    assert done.exit_code == 0, done.output
    for number, clip in enumerate(figures["clips"]):
        samples = golden_song(clip["seed"], clip["rate"], 1, clip["seconds"])
        (tmp_path / "songs").mkdir(exist_ok=True)
        save_wav(tmp_path / "songs" / f"{number}.wav", samples, clip["rate"])
    output = tmp_path / "scores.jsonl"
    done = run("score", tmp_path / "songs", "--model", tmp_path / "model", "--output", output)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row, clip in zip(rows, figures["clips"], strict=True):
        assert {name: row[name] for name in clip["scores"]} == pytest.approx(
            clip["scores"], abs=1e-4
        )
