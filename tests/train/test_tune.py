"""Adapters on the encoder: what is trained, kept and measured, against plain computations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from apex_reward.audio import load_audio, save_wav
from apex_reward.data.extract import ExtractSettings, ManifestSong, extract
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import read_jsonl
from apex_reward.model import ApexReward
from apex_reward.train import loop, tune
from apex_reward.train.evaluate import Checkpoint
from apex_reward.train.settings import TrainSettings
from apex_reward.train.tune import Tuner, tune_encoder
from tests.support import tiny_model

RATE = 24_000
SPLITS = {"train": 12, "val": 4, "test": 4}
SETTINGS = TrainSettings(epochs=3, batch_size=6, lr=0.02, task="popularity")


def labels_of(song: int, count: int) -> dict[str, float]:
    return {"score_streams": 90.0 * song / count, "score_likes": 80.0 - 60.0 * song / count}


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs of one or two segments, an encoder, and their shards in `data`."""
    folder = tmp_path_factory.mktemp("songs")
    rng, manifest = np.random.default_rng(0), []
    for split, count in SPLITS.items():
        for i in range(count):
            name = f"{split}{i}"
            samples = (0.02 + 0.02 * i) * rng.standard_normal((1, 18_000 + 24_000 * (i % 2)))
            path = folder / f"{name}.wav"
            save_wav(path, np.clip(samples, -1, 1).astype(np.float32), RATE)
            labels = {"platform": "suno", **labels_of(i, count)}
            manifest.append(ManifestSong(name, path.name, split, labels))
    tiny_model(segment_seconds=1.0).save_pretrained(folder / "encoder")
    settings = ExtractSettings(folder, str(folder / "encoder"))
    assert extract(manifest, settings, folder / "data") == []
    return folder


def tuned(
    songs: Path, output: Path, settings: TrainSettings = SETTINGS, **more: Any
) -> dict[str, Any]:
    return tune_encoder(songs / "data", songs, output, settings, **more)


@pytest.fixture(scope="module")
def whole(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    tuned(songs, output)
    return output


def result_bytes(output: Path) -> dict[str, bytes]:
    names = ("history.jsonl", "metrics.json", "best/model.safetensors", "best/training.json")
    return {name: (output / name).read_bytes() for name in names}


def test_stopped_and_resumed_is_the_same(
    songs: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)

    def stop(row: dict[str, float | int]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(songs, tmp_path, on_epoch=stop)
    assert not (tmp_path / "history.jsonl").exists()
    tuned(songs, tmp_path, resume=True)
    assert result_bytes(tmp_path) == result_bytes(whole)


def test_another_seed_is_another_run(songs: Path, whole: Path, tmp_path: Path) -> None:
    tuned(songs, tmp_path, replace(SETTINGS, seed=SETTINGS.seed + 1))
    name = "best/model.safetensors"
    assert (tmp_path / name).read_bytes() != (whole / name).read_bytes()
    assert json.loads((tmp_path / "best/training.json").read_text())["seed"] == SETTINGS.seed + 1


def test_metrics_are_the_saved_models_own(songs: Path, whole: Path) -> None:
    """Whole songs through the saved model, one by one, against the test labels."""
    model = ApexReward.from_pretrained(whole / "best")
    report = json.loads((whole / "metrics.json").read_text())
    assert report["n_songs"] == SPLITS["test"]
    assert report["mode"] == "song"
    errors = []
    for i in range(SPLITS["test"]):
        song = load_audio(songs / f"test{i}.wav")
        with torch.no_grad():
            scores = model(torch.from_numpy(song.samples)[None], song.sample_rate)
        labels = labels_of(i, SPLITS["test"])
        errors.append({head: (float(scores[head]) - value) ** 2 for head, value in labels.items()})
    for head in ("score_streams", "score_likes"):
        mse = np.mean([row[head] for row in errors])
        assert report["metrics"][head]["mse"] == pytest.approx(mse, rel=1e-4)


def test_the_best_epoch_is_kept_not_the_last(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate that grows the validation gets worse again."""
    monkeypatch.setattr(TrainSettings, "lr_at", lambda self, epoch: 2e-3 * 4.0**epoch)
    tuned(songs, tmp_path, replace(SETTINGS, epochs=5, batch_size=6, patience=6))
    rows = read_jsonl(tmp_path / "history.jsonl")
    losses = [row["val_error"] for row in rows]
    best = int(np.argmin(losses))
    assert best < len(rows) - 1, "the last epoch was the best; nothing is told apart"
    assert json.loads((tmp_path / "best/training.json").read_text())["epoch"] == best + 1
    model = ApexReward.from_pretrained(tmp_path / "best")
    errors = []
    for i in range(SPLITS["val"]):
        song = load_audio(songs / f"val{i}.wav")
        with torch.no_grad():
            scores = model(torch.from_numpy(song.samples)[None], song.sample_rate)
        errors.append((scores.score_likes[0] - labels_of(i, SPLITS["val"])["score_likes"]).square())
    assert rows[best]["val_mse_score_likes"] == pytest.approx(
        float(torch.stack(errors).mean()), rel=1e-4
    )


def test_training_figures_are_means_over_songs(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 songs in three steps of 4: a step counts by its songs."""
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    step = Tuner.step

    def measured(self: Tuner, features: torch.Tensor, *more: Any) -> Any:
        errors, losses = step(self, features, *more)
        seen.append((len(features), errors, losses))
        return errors, losses

    monkeypatch.setattr(Tuner, "step", measured)
    tuned(songs, tmp_path, replace(SETTINGS, epochs=1, batch_size=5, lr=1e-3))
    assert [count for count, _, _ in seen] == [4, 4, 4]
    (row,) = read_jsonl(tmp_path / "history.jsonl")
    loss = sum(count * float(losses) for count, _, losses in seen) / 12
    likes = sum(count * float(errors[1]) for count, errors, _ in seen) / 12
    assert row["train_loss"] == pytest.approx(loss)
    assert row["train_mse_score_likes"] == pytest.approx(likes)


def test_pooling_trained_with_the_encoder_is_the_saved_models(songs: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=2, batch_size=6, lr=0.02, train_pooling=True)
    report = tuned(songs, tmp_path, settings)
    model = ApexReward.from_pretrained(tmp_path / "best")
    first = Checkpoint.load(tmp_path / "frozen" / "best").pooling.weight
    assert (model.pooling.weight - first).abs().max() > 1e-3
    errors = []
    for i in range(SPLITS["test"]):
        song = load_audio(songs / f"test{i}.wav")
        with torch.no_grad():
            scores = model(torch.from_numpy(song.samples)[None], song.sample_rate)
        label = labels_of(i, SPLITS["test"])["score_likes"]
        errors.append((float(scores.score_likes[0]) - label) ** 2)
    assert report["metrics"]["score_likes"]["mse"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_model_says_how_it_was_made(songs: Path, whole: Path) -> None:
    training = json.loads((whole / "best" / "training.json").read_text())
    assert {training[name] for name in ("mode", "loss", "tuned")} == {
        "song", "standardized", "lora"
    }  # fmt: skip
    model = ApexReward.from_pretrained(whole / "best")
    assert model.familiar is None, "its statistics were those of the untouched encoder"
    before = ApexReward.from_pretrained(songs / "encoder").encoder.state_dict()
    after = model.encoder.state_dict()
    assert list(after) == list(before)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".attention." in name and name.endswith("_proj.weight") for name in moved)
    assert "| encoder | tuned with LoRA |" in (whole / "best" / "README.md").read_text()


def test_progress_counts_every_song_once_an_epoch(songs: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    frozen: list[float] = []
    tuned(
        songs, tmp_path, replace(SETTINGS, epochs=2, batch_size=5, lr=1e-3),
        on_songs=lambda done, total: told.append((done, total)),
        on_frozen=lambda row: frozen.append(row["epoch"]),
    )  # fmt: skip
    assert told == [(4, 16), (8, 16), (12, 16), (16, 16)] * 2
    assert frozen == [1, 2]


def test_adapters_and_predictor_are_clipped_as_one(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound of 1e-3 the norm over all gradients is the bound, whatever its parts."""
    norms: list[float] = []
    step = Tuner.step

    def measured(self: Tuner, *arguments: Any) -> Any:
        result = step(self, *arguments)
        with_gradient = [p.grad for p in self.parameters if p.grad is not None]
        names = {id(p) for p in self.adapters.parameters()}
        assert names & {id(p) for p in self.parameters}, "no adapter is trained"
        norms.append(float(torch.stack([g.norm() for g in with_gradient]).norm()))
        return result

    monkeypatch.setattr(Tuner, "step", measured)
    monkeypatch.setattr(loop, "CLIP", 1e-3)
    tuned(songs, tmp_path, replace(SETTINGS, epochs=1, lr=1e-3))
    assert norms[-2:] == pytest.approx([1e-3] * 2, rel=1e-3)


def test_missing_audio_is_listed_before_training(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)songs without audio in .*train0\.wav") as found:
        tune_encoder(songs / "data", tmp_path, tmp_path / "out", SETTINGS)
    assert "test3.wav" in str(found.value)
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(Accelerator):
        num_processes = 2

    monkeypatch.setattr(tune, "make_accelerator", lambda precision: Two(cpu=True))
    with pytest.raises(UsageError, match="trains in one process"):
        tuned(songs, tmp_path)
