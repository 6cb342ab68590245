"""Evaluation: metrics, song averages, intervals, published checkpoints."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from apex_reward import metrics
from apex_reward.errors import DataError
from apex_reward.metrics import few_songs
from apex_reward.model.checkpoint import load_parts
from apex_reward.scores.apex import HEADS
from apex_reward.train.evaluate import evaluate_checkpoint
from apex_reward.train.report import measure_intervals
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data, load_data, song_means, split_folders
from apex_reward.train.trainer import train
from tests.support import write_best_model
from tests.train.shards_builder import write_shards


def test_segment_predictions_are_averaged_per_song(
    shards: Path, data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=2, batch_size=64, lr=3e-3, mode="segment")
    trained = train(data, settings, tmp_path / "run", accelerator=accelerator)
    report = evaluate_checkpoint(
        tmp_path / "run" / "best", shards / "test", tmp_path / "out", bootstrap=50,
                      formats=("png", "pdf"))  # fmt: skip
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.pdf")}
    measures = ("mse", "mae", "pearson", "spearman")
    assert drawn == {f"{kind}_{name}" for kind in ("popularity", "aesthetics") for name in measures}
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
            for measured in (report, trained):
                low, high = measured["ci95"][head][name]
                assert low < measured["metrics"][head][name] < high
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


def test_intervals_hold_the_bootstrap_and_the_textbook() -> None:
    """Bootstrap ends of the general loop; Fisher's z and Student's t by hand."""
    rng = np.random.default_rng(1)
    label = np.round(rng.normal(size=(60, 2)), 1)  # with ties
    pred = np.round(label + rng.normal(size=(60, 2)), 1)
    found = measure_intervals(pred, label, ("a", "b"), rounds=40, seed=5)
    ends = -1.959964, 1.959964
    for column, head in enumerate("ab"):
        x, y = pred[:, column], label[:, column]
        r, rho = metrics.pearson(x, y), metrics.spearman(x, y)
        squares, distances = (x - y) ** 2, np.abs(x - y)
        half = {"mse": 2.000995 * squares.std(ddof=1) / math.sqrt(60)}
        half["mae"] = 2.000995 * distances.std(ddof=1) / math.sqrt(60)
        around = {
            "mse": [squares.mean() - half["mse"], squares.mean() + half["mse"]],
            "mae": [distances.mean() - half["mae"], distances.mean() + half["mae"]],
            "pearson": [math.tanh(math.atanh(r) + z / math.sqrt(57)) for z in ends],
            "spearman": [math.tanh(math.atanh(rho) + z * math.sqrt(1.06 / 57)) for z in ends],
        }  # fmt: skip
        for name, (low, high) in around.items():
            drawn = metrics.bootstrap_interval(getattr(metrics, name), x, y, rounds=40, seed=5)
            expected = min(low, drawn[0]), max(high, drawn[1])
            np.testing.assert_allclose(found[head][name], expected, rtol=1e-6)


def test_intervals_never_claim_certainty() -> None:
    """Two songs correlate by 1 or -1, and equal errors have no spread: nothing is known."""
    both = math.nan, math.nan
    for label in ([[3.0], [4.0]], [[3.0], [3.0]], [[1.0], [9.0]]):
        found = measure_intervals([[1.0], [2.0]], label, ["a"], rounds=20, seed=0)["a"]
        assert np.isnan([*found.values()]).all(), label
    five = np.arange(5.0)[:, None]
    found = measure_intervals(five, five * 2, ["a"], rounds=200, seed=0)["a"]
    assert np.isnan(found["pearson"]).all()
    assert not np.isnan(found["mse"]).any()
    low, high = measure_intervals(five, [[1.0], [0.0], [2.0], [4.0], [3.0]], ["a"], 200, 0)["a"][
        "pearson"
    ]
    assert low < -0.2, "five songs tell little"
    assert high > 0.95
    none = measure_intervals(five, five + 1, ["a"], rounds=0, seed=0)["a"]
    assert list(none.values()) == [pytest.approx(both, nan_ok=True)] * 4


def test_intervals_hold_the_truth() -> None:
    """Of 200 sets of 20 songs with a correlation of 0.5, at least 93% hold it."""
    rng, held = np.random.default_rng(0), 0
    for number in range(200):
        x = rng.standard_normal((20, 1))
        y = 0.5 * x + math.sqrt(0.75) * rng.standard_normal((20, 1))
        low, high = measure_intervals(x, y, ["a"], rounds=200, seed=number)["a"]["pearson"]
        held += low <= 0.5 <= high
    assert held >= 186


def test_small_splits_are_named() -> None:
    assert few_songs({"train": 46, "val": 3, "test": 30}) == [
        "the split val has 3 songs; figures of fewer than 30 songs vary widely"
    ]


def test_shards_of_another_encoder_are_refused(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    """The same architecture with other weights, or another folder where weights are unknown."""
    known = replace(data.source, encoder_weights="a")
    first = Data(data.splits, known, "full")
    train(first, TrainSettings(epochs=1), tmp_path / "run", accelerator=accelerator)
    other = dict(data.source.config) | {"encoder_name": "elsewhere"}
    for name, source, ok in (
        ("same", known, True),
        ("moved", replace(known, config=other), True),
        ("other", replace(known, encoder_weights="b"), False),
        ("unknown", replace(data.source, config=other), False),
    ):
        folder = write_shards(tmp_path / name, {"test": 30}, width=16, source=source) / "test"
        if ok:
            report = evaluate_checkpoint(tmp_path / "run" / "best", folder, tmp_path / "out")
            assert report["warnings"] == []
            continue
        with pytest.raises(DataError, match="holds embeddings of another encoder than"):
            evaluate_checkpoint(tmp_path / "run" / "best", folder, tmp_path / "out")


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
    trained = train(layered, settings, tmp_path / "run", accelerator=accelerator)
    report = evaluate_checkpoint(
        tmp_path / "run" / "best", shards / "test", tmp_path / "out", bootstrap=0
    )
    for head in HEADS:
        assert report["metrics"][head] == pytest.approx(trained["metrics"][head], rel=1e-5)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["ci95"]["clarity"] == {
        name: [None, None] for name in ("mse", "mae", "pearson", "spearman")
    }
