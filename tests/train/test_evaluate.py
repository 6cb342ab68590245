"""Evaluation: metrics, song averages, intervals, published checkpoints."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from apex_reward import metrics
from apex_reward.errors import UsageError
from apex_reward.model.checkpoint import load_parts
from apex_reward.scores.apex import HEADS
from apex_reward.train.dataset import Data, load_data, split_folders
from apex_reward.train.evaluate import evaluate_checkpoint
from apex_reward.train.intervals import bootstrap_intervals
from apex_reward.train.settings import Condition, TrainSettings
from apex_reward.train.split import song_means
from apex_reward.train.trainer import train
from tests.support import write_best_model
from tests.train.shards_builder import write_shards


def test_segment_predictions_are_averaged_per_song(
    shards: Path, data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    condition = Condition("standardized", mode="segment")
    settings = TrainSettings(epochs=2, batch_size=64, lr=3e-3)
    trained = train(data, condition, settings, tmp_path / "run", accelerator=accelerator)
    report = evaluate_checkpoint(
        tmp_path / "run" / "best", shards / "test", tmp_path / "out", bootstrap=50,
                      formats=("png", "pdf"))  # fmt: skip
    drawn = {path.stem for path in (tmp_path / "out").iterdir() if path.suffix == ".pdf"}
    assert drawn == {"popularity", "aesthetics"}
    assert (report["mode"], report["loss"], report["n_songs"]) == ("segment", "standardized", 70)
    predictor = load_parts(tmp_path / "run" / "best").predictor
    split = data["test"]
    with torch.no_grad():
        scores = predictor(torch.as_tensor(split.embeddings)).double().numpy()
    slow = np.array([scores[split.song == song].mean(axis=0) for song in range(70)])
    for column, head in enumerate(HEADS):
        for name in ("mse", "mae", "pearson", "spearman"):
            value = getattr(metrics, name)(slow[:, column], split.labels[:, column])
            assert report["metrics"][head][name] == pytest.approx(value, rel=1e-5)
            assert trained["metrics"][head][name] == pytest.approx(value, rel=1e-5)
        low, high = report["ci95"][head]["mse"]
        assert low < report["metrics"][head]["mse"] < high
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["metrics"] == report["metrics"]
    with open(tmp_path / "out" / "examples.csv", newline="") as file:
        examples = list(csv.DictReader(file))
    best = [row for row in examples if row["head"] == "clarity" and row["kind"] == "best"]
    errors = np.abs(slow - split.labels)[:, HEADS.index("clarity")]
    assert best[0]["audio_id"] == split.audio_ids[int(errors.argmin())]
    assert len(examples) == 7 * 20


def test_song_means() -> None:
    scores = np.array([[1.0], [3.0], [7.0]])
    song = np.array([0, 0, 1])
    assert song_means(scores, song, np.ones(3, np.float32)).tolist() == [[2.0], [7.0]]
    # (1 x 1 + 0.25 x 3) / 1.25
    weight = np.array([1.0, 0.25, 1.0], np.float32)
    assert song_means(scores, song, weight).tolist() == [[1.4], [7.0]]


def test_intervals_equal_the_general_loop() -> None:
    rng = np.random.default_rng(1)
    label = np.round(rng.normal(size=(60, 2)), 1)  # with ties
    pred = np.round(label + rng.normal(size=(60, 2)), 1)
    found = bootstrap_intervals(pred, label, ["a", "b"], rounds=40, seed=5)
    for column, head in enumerate("ab"):
        for name in ("mse", "mae", "pearson", "spearman"):
            expected = metrics.bootstrap_interval(
                getattr(metrics, name), pred[:, column], label[:, column], rounds=40, seed=5
            )
            np.testing.assert_allclose(found[head][name], expected, rtol=1e-9)


@pytest.mark.parametrize(("task", "shared"), [("full", 2), ("popularity", 3)])
def test_published_checkpoint(tmp_path: Path, task: str, shared: int) -> None:
    from apex_reward.data.shards import EmbeddingSource

    published = EmbeddingSource.published()
    write_shards(tmp_path / "data", {"test": 6}, width=768, source=published)
    file = write_best_model(tmp_path / "best_model.pt", task, shared, mode="segment", loss="equal")
    report = evaluate_checkpoint(file, tmp_path / "data" / "test", tmp_path / "out", bootstrap=5)
    assert (report["mode"], report["loss"], report["shared"]) == ("segment", "equal", shared)
    predictor = load_parts(file).predictor
    split = load_data({"test": tmp_path / "data" / "test"}, task)["test"]
    with torch.no_grad():
        scores = predictor(torch.as_tensor(split.embeddings)).double().numpy()
    expected = metrics.mse(song_means(scores, split.song, split.weight)[:, 1], split.labels[:, 1])
    assert report["metrics"]["score_likes"]["mse"] == pytest.approx(expected, rel=1e-5)


def test_trained_pooling_is_evaluated_on_the_layers(
    shards: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    layered = load_data(split_folders(shards), "full", layers=True)
    settings = TrainSettings(epochs=2, batch_size=64, lr=1e-2, train_pooling=True)
    trained = train(layered, Condition(), settings, tmp_path / "run", accelerator=accelerator)
    report = evaluate_checkpoint(
        tmp_path / "run" / "best", shards / "test", tmp_path / "out", bootstrap=0
    )
    for head in HEADS:
        assert report["metrics"][head] == pytest.approx(trained["metrics"][head], rel=1e-5)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["ci95"]["clarity"] == {
        name: [None, None] for name in ("mse", "mae", "pearson", "spearman")
    }


def test_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mode is 'album'"):
        evaluate_checkpoint("x", tmp_path, tmp_path, mode="album")


def test_a_correlation_with_a_constant_has_no_interval() -> None:
    """Resamples of (1, 2) are constant in half of all rounds; those that are not correlate by 1."""
    found = bootstrap_intervals([[1.0], [2.0]], [[3.0], [4.0]], ["a"], rounds=20, seed=0)["a"]
    assert all(math.isnan(end) for name in found for end in found[name])  # no round differs
    flat = bootstrap_intervals([[1.0], [2.0]], [[3.0], [3.0]], ["a"], rounds=20, seed=0)["a"]
    assert all(math.isnan(end) for end in (*flat["pearson"], *flat["spearman"]))
    none = bootstrap_intervals([[1.0], [2.0]], [[3.0], [4.0]], ["a"], rounds=0, seed=0)["a"]
    assert all(math.isnan(end) for ends in none.values() for end in ends)
