"""Training runs: resumed after any kill with the same bytes, loaded by the scorer's loader."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker

from apex_reward.errors import DataError, UsageError
from apex_reward.model.checkpoint import load_parts
from apex_reward.train import loop
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data, load_data, split_folders
from apex_reward.train.trainer import make_accelerator, train
from tests.train.shards_builder import small_source

SETTINGS = TrainSettings(epochs=6, batch_size=64, lr=3e-3)


def result_bytes(output: Path) -> dict[str, bytes]:
    names = ("history.jsonl", "metrics.json", "best/model.safetensors", "best/training.json")
    return {name: (output / name).read_bytes() for name in names}


def history(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"paper": True},
        {"loss": "equal", "shared": 3, "mode": "segment", "task": "popularity",
         "train_pooling": True},
    ],
    ids=["song", "segment-trained-pooling"],
)  # fmt: skip
def test_stopped_and_resumed_is_the_same(
    shards: Path, accelerator: Accelerator, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = TrainSettings(epochs=4, batch_size=64, lr=3e-3, **changes)
    data = load_data(split_folders(shards), settings.task, layers=settings.train_pooling)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(data, settings, whole, accelerator=accelerator)

    def stop(row: dict[str, float | int]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, settings, broken, accelerator=accelerator, on_epoch=stop)
    assert not (broken / "history.jsonl").exists()
    assert len((broken / "history.jsonl.partial").read_text().splitlines()) == 2
    train(data, settings, broken, accelerator=accelerator, resume=True)
    assert result_bytes(broken) == result_bytes(whole)
    assert not (broken / "history.jsonl.partial").exists()


@pytest.mark.slow
def test_killed_at_ten_random_moments(data: Data, accelerator: Accelerator, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=40, batch_size=64, lr=3e-3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    started = time.perf_counter()
    train(data, settings, whole, accelerator=accelerator)
    seconds = time.perf_counter() - started
    moments = random.Random(0)
    kills = 0
    for _ in range(10):
        child = os.fork()
        if child == 0:
            train(data, settings, broken, accelerator=accelerator, resume=True)
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 8))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    assert kills, "the run ended before any kill came; make it longer"
    train(data, settings, broken, accelerator=accelerator, resume=True)
    assert result_bytes(broken) == result_bytes(whole)


def test_resume_with_other_settings_or_data_is_refused(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    one = TrainSettings(epochs=1)
    train(data, one, tmp_path, accelerator=accelerator)
    with pytest.raises(UsageError, match=r"state.pt was made with other epochs"):
        train(data, TrainSettings(epochs=2), tmp_path, accelerator=accelerator, resume=True)
    split = data["train"]
    for name, values in (("labels", split.labels), ("embeddings", split.embeddings)):
        changed = dataclasses.replace(split, **{name: values[::-1].copy()})
        other = Data({**data.splits, "train": changed}, data.source, "full")
        with pytest.raises(UsageError, match="made with other data; resume with the same"):
            train(other, one, tmp_path, accelerator=accelerator, resume=True)


def test_a_second_run_in_the_same_folder_is_refused(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    def again(row: dict[str, float | int]) -> None:
        with pytest.raises(UsageError, match="history.jsonl is being written by another run"):
            train(data, TrainSettings(epochs=1), tmp_path, accelerator=accelerator)

    train(
        data,
        TrainSettings(epochs=1),
        tmp_path,
        accelerator=accelerator,
        on_epoch=again,
    )


def test_a_new_run_replaces_an_old_one(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    train(data, TrainSettings(epochs=3), tmp_path, accelerator=accelerator)
    train(data, TrainSettings(epochs=1), tmp_path, accelerator=accelerator)
    assert len(history(tmp_path)) == 1


@pytest.mark.slow
def test_the_learned_sigma_does_not_keep_a_run_alive(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    """With the paper's rule sigma falls to the last epoch; with ours the errors decide."""
    stopped = {}
    for select in ("val_error", "val_loss"):
        settings = TrainSettings(
            epochs=80, batch_size=64, lr=2e-2, patience=8, loss="uncertainty", select=select
        )
        train(data, settings, tmp_path / select, accelerator=accelerator)
        rows = history(tmp_path / select)
        errors = [row["val_error"] for row in rows]
        best = json.loads((tmp_path / select / "best" / "training.json").read_text())["epoch"]
        stopped[select] = len(rows), errors[best - 1] / min(errors)
    assert stopped["val_error"][0] < stopped["val_loss"][0]
    assert stopped["val_error"][1] == 1.0


def test_small_splits_are_warned_of(data: Data, accelerator: Accelerator, tmp_path: Path) -> None:
    few = data["val"]
    chosen = few.song < 5
    few = dataclasses.replace(
        few, embeddings=few.embeddings[chosen], song=few.song[chosen], weight=few.weight[chosen],
        labels=few.labels[:5], audio_ids=few.audio_ids[:5],
    )  # fmt: skip
    small = Data({**data.splits, "val": few}, data.source, "full")
    report = train(small, TrainSettings(epochs=1), tmp_path, accelerator=accelerator)
    assert report["warnings"] == [
        "the split val has 5 songs; figures of fewer than 30 songs vary widely"
    ]
    assert json.loads((tmp_path / "metrics.json").read_text())["warnings"] == report["warnings"]


def test_the_best_model_so_far_is_there_after_every_epoch(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    losses: list[float] = []

    def look(row: dict[str, float | int]) -> None:
        losses.append(row["val_error"])
        training = json.loads((tmp_path / "best" / "training.json").read_text())
        assert training["epoch"] == int(np.argmin(losses)) + 1
        assert training["val_error"] == min(losses)

    settings = TrainSettings(epochs=60, batch_size=64, lr=2e-2, patience=3)
    train(data, settings, tmp_path, accelerator=accelerator, on_epoch=look)
    assert len(history(tmp_path)) == len(losses) == int(np.argmin(losses)) + 1 + 3 < 60


def test_resume_of_nothing_starts_and_of_the_end_adds_nothing(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    settings, told = TrainSettings(epochs=2, batch_size=64), []
    for _ in range(2):
        train(
            data, settings, tmp_path, accelerator=accelerator, resume=True,
            on_epoch=lambda row: told.append(row["epoch"]),
        )  # fmt: skip
        assert [row["epoch"] for row in history(tmp_path)] == [1, 2]
    assert told == [1, 2, 2], "the last epoch is told again, whose model may not have been written"


def test_a_state_that_cannot_be_read_is_named(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    train(data, TrainSettings(epochs=1), tmp_path, accelerator=accelerator)
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"state\.pt cannot be read .*; leave out --resume"):
        train(
            data, TrainSettings(epochs=1), tmp_path, accelerator=accelerator,
            resume=True,
        )  # fmt: skip


def test_best_predicts_what_metrics_say(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    report = train(data, SETTINGS, tmp_path, accelerator=accelerator)
    config, predictor, pooling, _ = load_parts(tmp_path / "best")
    assert (config.task, config.shared, config.width) == ("full", 2, 16)
    assert torch.equal(pooling.weight, small_source(16).layer_pooling().weight)
    samples = data["test"].samples("song", "full")
    with torch.no_grad():
        pred = predictor(torch.as_tensor(samples.features)).double().numpy()
    mse = ((pred - samples.labels) ** 2).mean(axis=0)
    measured = [measures["mse"] for measures in report["metrics"].values()]
    np.testing.assert_allclose(mse, measured, rtol=1e-5)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"| trained on | {len(data['train'].audio_ids):,} songs |" in card
    row = report["metrics"]["clarity"]
    assert f"| clarity | {row['mse']:.3f} | {row['mae']:.3f} |" in card


def test_trained_pooling_moves_and_frozen_does_not(
    shards: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    data = load_data(split_folders(shards), "full", layers=True)
    first = data.source.layer_pooling().weight
    settings = TrainSettings(epochs=2, batch_size=64, lr=1e-2, train_pooling=True)
    train(data, settings, tmp_path, accelerator=accelerator)
    pooling = load_parts(tmp_path / "best").pooling
    assert (pooling.weight - first).abs().max() > 1e-3


def test_mixed_precision_stays_near(data: Data, accelerator: Accelerator, tmp_path: Path) -> None:
    train(data, SETTINGS, tmp_path / "full", accelerator=accelerator)
    settings = TrainSettings(epochs=6, batch_size=64, lr=3e-3, precision="bf16")
    AcceleratorState._reset_state()  # accelerate keeps one precision per process
    half = make_accelerator("bf16")
    train(data, settings, tmp_path / "half", accelerator=half)
    full, low = history(tmp_path / "full"), history(tmp_path / "half")
    assert full != low
    assert low[-1]["val_loss"] == pytest.approx(full[-1]["val_loss"], rel=0.05)


def test_constant_label_and_standardized(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    train_split = data["train"]
    labels = train_split.labels.copy()
    labels[:, 3] = 2.5
    constant = dataclasses.replace(train_split, labels=labels)
    changed = Data({**data.splits, "train": constant}, data.source, "full")
    with pytest.raises(DataError, match="labels of musicality are all equal"):
        train(changed, SETTINGS, tmp_path, accelerator=accelerator)


class Remembering(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "remembering"
    requires_logging_directory = False

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        super().__init__()

    @property
    def tracker(self) -> list[object]:
        return self.rows

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.configuration = values

    def log(self, values: dict[str, float], step: int | None = None, **_: object) -> None:
        self.rows.append((step, values))


def test_trackers_get_every_epoch(data: Data, tmp_path: Path) -> None:
    tracker = Remembering()
    own = make_accelerator("no", [tracker], tmp_path, {"lr": 1.0})
    train(
        data,
        TrainSettings(epochs=3),
        tmp_path,
        accelerator=own,
        on_epoch=lambda row: own.log(row, step=int(row["epoch"])),
    )
    assert tracker.configuration == {"lr": 1.0}
    assert [(step, values) for step, values in tracker.rows] == [
        (int(row["epoch"]), row) for row in history(tmp_path)
    ]


def test_trackers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *_: [])
    with pytest.raises(UsageError, match="--report-to wandb,aim: not installed here"):
        make_accelerator("no", ["wandb", "aim"])


def test_unknown_tracker() -> None:
    with pytest.raises(UsageError, match="carrier-pigeon"):
        make_accelerator("no", ["carrier-pigeon"])
