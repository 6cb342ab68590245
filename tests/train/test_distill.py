"""Distillation: a student from the command in use; resume, a changed teacher, bad songs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from apex_reward import ApexRewardFunction, Head, Reward, Scores, load_reward_model
from apex_reward.cli import app
from apex_reward.errors import CheckpointError
from apex_reward.model.config import ApexConfig
from apex_reward.model.predictor import StudentHeads
from apex_reward.scores.apex import HEADS
from apex_reward.serve.app import make_app
from apex_reward.serve.settings import ServeSettings
from apex_reward.train import loop
from apex_reward.train.distill import StudentLoop
from apex_reward.train.evaluate import Checkpoint
from tests.support import tiny_model, write_wav

RESULTS = ("model.safetensors", "config.json", "metrics.json", "history.jsonl", "README.md")
COMMAND = ["distill", "--size", "tiny", "--epochs", "3", "--workers", "0"]


class Jury:
    """One head without bounds, one with a lower bound; no gradient."""

    name = "jury"
    heads = (Head("worth"), Head("crest", 0.0))
    sample_rate = 24_000
    differentiable = False
    reads_text = False

    def __call__(self, waveforms, sample_rate, lengths=None, prompts=None) -> Scores:
        power = waveforms.square().mean(dim=-1).clamp_min(1e-9)
        return Scores({"worth": 10 * power.log10(), "crest": power.sqrt()}, self.heads)


class Reader(Jury):
    """A model that reads text."""

    reads_text = True


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen songs of 1.5 to 4 s and a file that is none."""
    folder = tmp_path_factory.mktemp("songs")
    for n in range(12):
        write_wav(folder / f"{n:02d}.wav", 1.5 + 0.2 * n, (24_000, 44_100)[n % 2], seed=n)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of one-second segments with random weights."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    tiny_model(segment_tail="mask").save_pretrained(folder)
    return folder


def run(*options: object) -> str:
    result = CliRunner().invoke(app, [*COMMAND, *map(str, options)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def student(songs: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("student") / "student"
    run("--teacher", teacher, "--audio-dir", songs, "--output", output)
    return output


def test_the_command_leaves_a_student_with_its_figures(student: Path):
    figures = json.loads((student / "metrics.json").read_text())
    assert list(figures["heads"]) == list(HEADS)
    for row in figures["heads"].values():
        assert -1 <= row["spearman"] <= 1
        assert row["ci95"] == [-1.0, 1.0]  # two held-out songs
        assert list(row["by_kind"]) == ["crop", "gain", "mixed", "damaged"]
    assert -1 <= figures["gradient_cosine"] <= 1
    assert (figures["n_songs"], figures["n_clips"], figures["failed"]) == (12, 96, 0)
    for row in figures["best_of"].values():
        assert row["gain"] <= 1
        assert 0 <= row["lost"] <= 1
    history = [json.loads(line) for line in (student / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    card = (student / "README.md").read_text()
    assert "imitates" in card
    assert "damaged" in card
    with pytest.raises(CheckpointError, match="is a student that `distill` made"):
        Checkpoint.load(student)


def test_a_student_learns_the_teachers_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Jury, "config", ApexConfig(segment_seconds=2.0), raising=False)
    (tmp_path / "few").mkdir()
    for n in range(80):
        write_wav(tmp_path / "few" / f"{n:02d}.wav", 1.5, (24_000, 44_100)[n % 2], seed=n)
    options = ["--audio-dir", tmp_path / "few", "--output", tmp_path / "loud", "--epochs", "40"]
    run("--teacher", f"{__name__}:Jury", *options)
    figures = json.loads((tmp_path / "loud" / "metrics.json").read_text())
    correlations = {name: row["spearman"] for name, row in figures["heads"].items()}
    assert min(correlations.values()) > 0.7, correlations
    assert figures["correlation"] > 0.5
    assert figures["best_of"]["16"]["gain"] > 0.5


def test_a_student_is_used_like_any_model(student: Path, songs: Path, tmp_path: Path):
    options = ["--mix", "aesthetics", "--workers", "0", "--output", str(tmp_path / "rows.jsonl")]
    result = CliRunner().invoke(app, ["score", str(songs), "--model", str(student), *options])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert all(1 <= row["clarity"] <= 5 and math.isfinite(row["reward"]) for row in rows)
    reward = Reward(str(student), mix="aesthetics", loudness=-18.0, guards="penalty")
    wave = (0.1 * torch.randn(2, 40_000)).requires_grad_()
    reward(wave, 24_000).sum().backward()
    assert wave.grad is not None
    assert bool((wave.grad.abs().sum(dim=1) > 0).all())
    reward.save(tmp_path / "reward.yaml")
    again = Reward.load(tmp_path / "reward.yaml")
    assert torch.equal(again(wave, 24_000), reward(wave, 24_000))
    assert reward.demonstration is False


def test_pairs_take_the_student_of_a_cascade(
    student: Path, teacher: Path, songs: Path, tmp_path: Path
):
    table = tmp_path / "candidates.jsonl"
    rows = [
        {"audio": str(path), "prompt": f"p{n % 3}"}
        for n, path in enumerate(sorted(songs.glob("*.wav")))
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", str(teacher), "--cascade", str(student), "--keep", "0.5"]
    options += ["--mix", "aesthetics", "--axis", "reward", "--workers", "0"]
    output = tmp_path / "pairs"
    result = CliRunner().invoke(app, ["pairs", str(table), *options, "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "is expected to lose" in result.output
    scored = [json.loads(line) for line in (output / "scored.jsonl").read_text().splitlines()]
    assert sum(row["judged_by"] == "teacher" for row in scored) == 6
    assert len((output / "pairs.jsonl").read_text().splitlines()) == 3


def test_trainers_the_arena_and_the_server_take_the_student(
    student: Path, songs: Path, tmp_path: Path
):
    paths, reward = [str(songs / "00.wav"), str(songs / "01.wav")], Reward(str(student))
    rows = reward.judge(paths)
    function = ApexRewardFunction(reward, decode=lambda path: path)
    earned = function(["a", "b"], ["c", "d"], path=paths)
    assert earned == pytest.approx([row["reward"] for row in rows], abs=1e-5)
    battles, scored = tmp_path / "battles.jsonl", tmp_path / "scored.jsonl"
    battle = {"preference": "A", "audio_a": paths[0], "audio_b": paths[1]}
    battles.write_text(json.dumps(battle) + "\n")
    options = ["--model", str(student), "--workers", "0", "--output", str(scored)]
    result = CliRunner().invoke(app, ["arena", "score", str(battles), *options])
    assert result.exit_code == 0, result.output
    sides = [json.loads(scored.read_text())[f"musicality_{side}"] for side in "ab"]
    settings = ServeSettings(workers=1, audio_root=str(songs))
    with TestClient(make_app(reward, settings)) as client:
        body = {"songs": [{"path": Path(path).name} for path in paths]}
        served = [row["musicality"] for row in client.post("/score", json=body).json()["rows"]]
    expected = [row["musicality"] for row in rows]
    assert sides == pytest.approx(expected, abs=1e-4)
    assert served == pytest.approx(expected, abs=1e-4)


def test_a_killed_run_ends_with_the_same_bytes(
    student: Path, songs: Path, teacher: Path, tmp_path: Path
):
    options = ["--teacher", str(teacher), "--audio-dir", str(songs), "--output", str(tmp_path)]
    shards = tmp_path / "shards"
    started = [sys.executable, "-m", "apex_reward", *COMMAND, *options]
    process = subprocess.Popen(started, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not list(shards.glob("*.parquet")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "metrics.json").exists()
    first = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    run(*options, "--resume")
    assert {n: (shards / n).stat().st_mtime_ns for n in first} == first
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (student / name).read_bytes(), name


def test_a_run_killed_in_training_ends_with_the_same_bytes(
    student: Path, songs: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--teacher", str(teacher), "--audio-dir", str(songs), "--output", str(tmp_path)]
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    child = os.fork()
    if child == 0:
        loss, epochs = StudentLoop._loss, []

        def loss_or_death(self, rows):
            epochs.append(self.epoch)
            if epochs.count(2) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(self, rows)

        StudentLoop._loss = loss_or_death
        run(*options)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (row,) = (tmp_path / "history.jsonl.partial").read_text().splitlines()
    assert json.loads(row)["epoch"] == 1
    tiny_model(seed=1, segment_tail="mask").save_pretrained(tmp_path / "other")
    changed = [*COMMAND, *options, "--resume", "--teacher", str(tmp_path / "other")]
    assert CliRunner().invoke(app, changed).exit_code == 2
    run(*options, "--resume")
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (student / name).read_bytes(), name


def test_a_changed_teacher_or_other_settings_are_refused(
    student: Path, songs: Path, tmp_path: Path
):
    tiny_model(seed=1, segment_tail="mask").save_pretrained(tmp_path / "teacher")
    before = (student / "model.safetensors").read_bytes()
    common = ["--audio-dir", str(songs), "--output", str(student), "--resume"]
    result = CliRunner().invoke(app, [*COMMAND, "--teacher", str(tmp_path / "teacher"), *common])
    assert result.exit_code == 2
    assert "teacher" in result.output
    assert (student / "model.safetensors").read_bytes() == before


def test_heads_of_a_panel_keep_their_names_ranges_and_units(songs: Path, tmp_path: Path):
    panel = Reward({"a": f"{__name__}:Jury", "b": tiny_saved(tmp_path)}, mix="b.clarity=1")
    panel.save(tmp_path / "panel.yaml")
    (tmp_path / "songs").mkdir()
    for path in sorted(songs.glob("*.wav"))[:6]:
        (tmp_path / "songs" / path.name).symlink_to(path)
    (tmp_path / "songs" / "bad.wav").write_text("no audio")
    output = tmp_path / "student"
    options = ["--teacher", tmp_path / "panel.yaml", "--audio-dir", tmp_path / "songs"]
    result = CliRunner().invoke(app, [*COMMAND, *map(str, options), "--output", str(output)])
    assert result.exit_code == 1  # one song failed
    assert "bad.wav" in (output / "failed.jsonl").read_text()
    model = load_reward_model(str(output))
    assert [(h.name, h.low, h.high) for h in model.heads] == [
        (h.name, h.low, h.high) for h in panel.heads
    ]
    assert isinstance(model.predictor, StudentHeads)
    assert -60 < float(model.predictor.centre[0]) < 0  # decibels
    assert json.loads((output / "metrics.json").read_text())["gradient_cosine"] is None
    assert str(Reward(model).mix) == str(panel.mix)


def tiny_saved(folder: Path) -> str:
    tiny_model().save_pretrained(folder / "tiny")
    return str(folder / "tiny")


def test_a_teacher_that_reads_text_is_refused(songs: Path, tmp_path: Path):
    options = ["--audio-dir", str(songs), "--output", str(tmp_path)]
    result = CliRunner().invoke(app, [*COMMAND, "--teacher", f"{__name__}:Reader", *options])
    assert result.exit_code == 2
    assert "reads prompts" in result.output
