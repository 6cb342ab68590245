"""prepare, extract, train, score, evaluate and grid, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.model.checkpoint import load_parts
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS
from apex_reward.train import trainer
from apex_reward.train.evaluate import Checkpoint
from apex_reward.train.shards import load_data
from tests.support import tiny_model
from tests.train.shards_builder import write_shards
from tests.train.test_trainer import Remembering


def run(*arguments: object) -> Result:
    torch.set_num_threads(1)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short songs, their metadata, teacher scores and a tiny encoder."""
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    rows, scores = [], []
    for i in range(40):
        samples = (0.02 + 0.01 * i) * rng.standard_normal((1, 30_000))
        save_wav(folder / f"song{i}.wav", np.clip(samples, -1, 1).astype(np.float32), 24_000)
        row = {"id": f"song{i}", "path": f"song{i}.wav", "plays": i + 1, "likes": 3 * i}
        rows.append(row)
        scores.append({"audio_id": f"song{i}", **dict.fromkeys(AESTHETIC_HEADS, 1 + i / 10)})
    write_table(folder / "meta.csv", rows)
    write_table(folder / "songeval.csv", scores)
    tiny_model().save_pretrained(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def extracted(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("data")
    result = run("prepare", audio / "meta.csv", "--output", output, "--audio-dir", audio)
    assert result.exit_code == 0, result.output
    result = run(
        "extract", output / "manifest.parquet", "--audio-dir", audio, "--output", output,
        "--encoder", audio / "encoder", "--songeval", audio / "songeval.csv", "--workers", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return output


def test_from_metadata_to_scores(audio: Path, extracted: Path, tmp_path: Path) -> None:
    result = run(
        "train", "--data", extracted, "--output", tmp_path / "run", "--epochs", 3,
        "--batch-size", 16, "--lr", 0.01, "--loss", "standardized",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "musicality" in result.output
    rows = tmp_path / "rows.jsonl"
    result = run(
        "score", audio / "song3.wav", "--model", tmp_path / "run" / "best", "--output", rows
    )
    assert result.exit_code == 0, result.output
    (row,) = read_jsonl(rows)
    assert row["error"] is None
    evaluated = tmp_path / "evaluated"
    split = next(f for f in ("train", "test", "val") if _has_song(extracted / f, "song3"))
    result = run(
        "evaluate", "--checkpoint", tmp_path / "run" / "best", "--data", extracted / split,
        "--output", evaluated, "--bootstrap", 10,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (evaluated / "examples.csv").is_file()
    data = load_data({"split": extracted / split}, "full")["split"]
    predicted = Checkpoint.load(tmp_path / "run" / "best").predict(data)
    for head, value in zip(HEADS, predicted[data.audio_ids.index("song3"), 0], strict=True):
        assert row[head] == pytest.approx(value, abs=1e-3)


def _has_song(folder: Path, name: str) -> bool:
    import pyarrow.parquet as pq

    return name in pq.read_table(folder, columns=["audio_id"])["audio_id"].to_pylist()


def test_paper_and_the_default_recipe(tmp_path: Path) -> None:
    """The default loss is standardized; --paper sets loss, members and the rule of selection."""
    data = write_shards(tmp_path / "data", {"train": 40, "val": 12, "test": 12}, width=16)
    for words, loss, best in (((), "standardized", "val_error"), (("--paper",), "uncertainty", "")):
        output = tmp_path / (loss or "run")
        result = run("train", "--data", data, "--output", output, "--epochs", 3, *words)
        assert result.exit_code == 0, result.output
        report = json.loads((output / "metrics.json").read_text())
        assert report["loss"] == loss
        assert report["ci95"]["clarity"]["mse"][0] < report["metrics"]["clarity"]["mse"]
        rows = read_jsonl(output / "history.jsonl")
        chosen = json.loads((output / "best" / "training.json").read_text())["epoch"]
        figures = [row[best or "val_loss"] for row in rows]
        assert chosen == figures.index(min(figures)) + 1
        assert "warning: the split val has 12 songs" in result.output


def test_failed_songs_exit_with_one(audio: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "m.jsonl", [{"audio_id": "x", "path": "meta.csv"}])
    result = run(
        "extract", tmp_path / "m.jsonl", "--audio-dir", audio, "--output", tmp_path / "out",
        "--encoder", audio / "encoder", "--workers", 0,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "failed: meta.csv" in result.output


def test_wrong_usage_exits_with_two_before_training(extracted: Path, tmp_path: Path) -> None:
    for wrong, message in (
        (["--loss", "focal"], "'focal' is not one of"),
        (["--epochs", "0", "--lr", "0"], "epochs is 0; expected 1 or more; lr is 0.0"),
        (["--shared", "4"], "shared is 4; expected 2 or 3 trunk layers"),
        (["--paper", "--members", "8"], "--paper sets members to 1; leave out --members"),
        (["--paper", "--loss", "equal"], "--paper sets loss to uncertainty"),
        (["--tune-encoder", "full"], "'full' is not"),
        (["--tune-encoder", "lora"], "--audio-dir"),
        (["--precision", "fp8"], "'fp8' is not one of"),
    ):
        result = run("train", "--data", extracted, "--output", tmp_path, *wrong)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert not list(tmp_path.iterdir())


def test_bad_data_exits_with_one_before_training(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data", {"train": 8, "val": 4, "test": 4}, width=16)
    for file in (data / "val").glob("*"):
        file.unlink()
    result = run("train", "--data", data, "--output", tmp_path / "run")
    assert result.exit_code == 1
    assert "val: no shards" in result.output
    assert not (tmp_path / "run").exists()


def test_grid_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, make = Remembering(), trainer.make_accelerator

    def remembering(precision: str, names: list[str], *rest: Any) -> Any:
        assert names == ["remembering"]
        return make(precision, [tracker], *rest)

    monkeypatch.setattr(trainer, "make_accelerator", remembering)
    data = write_shards(tmp_path / "data", {"train": 60, "val": 20, "test": 30}, width=16)
    result = run(
        "grid", "--data", data, "--output", tmp_path / "grid", "--epochs", 1,
        "--losses", "equal,standardized", "--seed", 1, "--seed", 2, "--figures", "svg",
        "--report-to", "remembering",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "| G | standardized | 2 | song | full |" in result.output
    assert len((tmp_path / "grid" / "results.csv").read_text().splitlines()) == 1 + 2 * 8 * 9
    drawing = tmp_path / "grid" / "figures" / "clarity_mae.svg"
    assert "clarity: MAE (points), 2 seeds" in drawing.read_text()
    assert drawing.with_suffix(".png").is_file()
    assert [step for step, _ in tracker.rows] == list(range(1, 33))
    names = {name for _, row in tracker.rows for name in row}
    assert "standardized-2-song-full-1/val_loss" in names
    assert "Epochs chosen by val_loss, the paper's rule." in result.output


def test_adapters_change_the_encoder_and_the_result_scores(
    audio: Path, extracted: Path, tmp_path: Path
) -> None:
    arguments = [
        "train", "--data", extracted, "--output", tmp_path / "run", "--epochs", 2,
        "--batch-size", 16, "--lr", 0.01, "--loss", "standardized", "--task", "popularity",
        "--tune-encoder", "lora", "--audio-dir", audio,
    ]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    from apex_reward.model import ApexReward

    tuned = ApexReward.from_pretrained(tmp_path / "run" / "best")
    before = tiny_model().encoder.state_dict()
    after = tuned.encoder.state_dict()
    assert list(after) == list(before)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".attention." in name and "_proj.weight" in name for name in changed)
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rows = tmp_path / "rows.jsonl"
    result = run("score", audio, "--model", tmp_path / "run" / "best", "--output", rows)
    assert result.exit_code == 0, result.output
    import pyarrow.parquet as pq

    table = pq.read_table(extracted / "test").to_pylist()
    labels = {row["path"]: row["score_likes"] for row in table}
    scores = {Path(row["path"]).name: row["score_likes"] for row in read_jsonl(rows)}
    errors = [(scores[path] - label) ** 2 for path, label in labels.items()]
    assert np.mean(errors) == pytest.approx(report["metrics"]["score_likes"]["mse"], rel=1e-3)
    whole = (tmp_path / "run" / "history.jsonl").read_bytes()
    assert run(*arguments, "--resume").exit_code == 0
    assert (tmp_path / "run" / "history.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Training runs on two processes; evaluation gives the same bytes on one and on two."""
    data = write_shards(tmp_path / "data", {"train": 160, "val": 30, "test": 60}, width=16)
    train = ["train", "--data", data, "--epochs", 3, "--lr", 0.01]
    train += ["--batch-size", 32, "--loss", "standardized"]
    evaluate = ["evaluate", "--checkpoint", tmp_path / "run" / "best", "--data", data / "test"]
    one = [sys.executable, "-m", "apex_reward"]
    # What `accelerate launch` starts for several devices; of several CPU processes it starts
    # one only (seen with accelerate 1.15).
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    two += ["--master_port", "29711", "-m", "apex_reward"]
    for command in (
        [*two, *train, "--output", tmp_path / "run"],
        [*one, *train, "--output", tmp_path / "alone"],
        [*two, *evaluate, "--output", tmp_path / "two", "--bootstrap", 20],
        [*one, *evaluate, "--output", tmp_path / "one", "--bootstrap", 20],
    ):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len(history) == 3
    losses = [json.loads(line)["val_loss"] for line in history]
    assert losses[-1] < losses[0]
    # Twice the samples a step: another run than one process makes.
    alone = (tmp_path / "alone" / "history.jsonl").read_text().splitlines()
    assert abs(json.loads(alone[0])["val_loss"] - losses[0]) > 1e-3
    for name in ("metrics.json", "examples.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    predictor = load_parts(tmp_path / "run" / "best").predictor
    assert all(torch.isfinite(value).all() for value in predictor.state_dict().values())
