"""Ensembles: members together as apart, better than one, honest about their spread."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from apex_reward import metrics
from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.checkpoint import load_parts
from apex_reward.model.predictor import PredictorEnsemble, members_of
from apex_reward.scores.apex import HEADS
from apex_reward.train import loop
from apex_reward.train.evaluate import Checkpoint, bind, evaluate_checkpoint
from apex_reward.train.report import fit_spread_scale, metrics_report, spread_measures
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data, load_data, split_folders
from apex_reward.train.trainer import sample_loop, train
from tests.train.shards_builder import SONGS, write_shards

MEMBERS = 3
SETTINGS = TrainSettings(
    epochs=20, batch_size=64, lr=3e-2, patience=2, mode="segment", members=MEMBERS
)


@pytest.fixture(scope="module")
def ensemble_run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("ensemble")
    train(data, SETTINGS, output, accelerator=Accelerator(cpu=True))
    return output


def test_a_member_trains_as_it_would_alone(
    data: Data, ensemble_run: Path, accelerator: Accelerator
) -> None:
    """The same history and best epoch to the last bit, and the same predictor."""
    checkpoint = Checkpoint.load(ensemble_run / "best")
    notes = checkpoint.training["members"]
    assert [note["seed"] for note in notes] == [42, 43, 44]
    assert len({note["epoch"] for note in notes}) > 1, "every member stops in its own epoch"
    rows = [json.loads(line) for line in (ensemble_run / "history.jsonl").read_text().splitlines()]
    for i, settings in enumerate(SETTINGS.each()):
        alone = sample_loop(data, settings, accelerator)
        while not alone.finished:
            alone.run_epoch()
        own = [row for row in rows if row["member"] == i]
        assert own == [{"member": i, **row} for row in alone.history]
        errors = [row["val_error"] for row in own]
        assert notes[i]["epoch"] == alone.best_epoch == int(np.argmin(errors)) + 1
        assert len(errors) == min(notes[i]["epoch"] + 2, 20)
        with alone.at_best() as network:
            state = copy.deepcopy(network.predictor).state_dict()
        for name, value in checkpoint.predictors[i].state_dict().items():
            assert torch.equal(value, state[name]), name


def test_report_of_an_ensemble_by_hand() -> None:
    """Two members, three songs: means 2, 4, 3; spreads 1, 2, 0; errors 1, 3, 0."""
    members = np.array([[[1.0], [3.0]], [[2.0], [6.0]], [[3.0], [3.0]]])
    labels = np.array([[1.0], [1.0], [3.0]])
    report = metrics_report({"mode": "song"}, members, labels, ["clarity"], [0.5])
    assert report["metrics"]["clarity"]["mse"] == pytest.approx(10 / 3)
    # Members: (0 + 1 + 0) / 3 and (4 + 25 + 0) / 3.
    assert report["member_metrics"]["clarity"]["mse"] == pytest.approx(5.0)
    assert report["members"] == 2
    # Two scaled spreads are 1, 2 and 0: the first and the third song are inside.
    expected = {"scale": 0.5, "spearman": 1.0, "coverage": 2 / 3}
    assert report["spread"]["clarity"] == pytest.approx(expected)
    assert spread_measures(members, labels, ["clarity"], None)["clarity"]["coverage"] is None


def test_spread_scale_is_the_conformal_quantile() -> None:
    """39 songs of spread 1 and errors 1 to 39: rank ceil(0.95 x 40) = 38, 38 / 2 = 19."""
    members = np.stack([np.full((39, 1), -1.0), np.full((39, 1), 1.0)], axis=1)
    labels = np.random.default_rng(0).permutation(np.arange(1.0, 40.0))[:, None]
    assert fit_spread_scale(members, labels) == [19.0]
    assert fit_spread_scale(members[:5], np.ones((5, 1))) == [0.5]


def test_saved_and_loaded(ensemble_run: Path, data: Data) -> None:
    parts = load_parts(ensemble_run / "best")
    assert isinstance(parts.predictor, PredictorEnsemble)
    assert (parts.config.members, parts.config.familiar) == (MEMBERS, True)
    metrics_file = json.loads((ensemble_run / "metrics.json").read_text())
    scales = [metrics_file["spread"][head]["scale"] for head in HEADS]
    assert parts.config.spread_scale == scales
    card = (ensemble_run / "best" / "README.md").read_text()
    names = ("mse", "mae", "pearson", "spearman")
    figures = [metrics_file["metrics"]["clarity"][name] for name in names]
    figures += [metrics_file["spread"]["clarity"][name] for name in ("spearman", "coverage")]
    assert f"| clarity | {' | '.join(f'{figure:.3f}' for figure in figures)} |" in card
    x = torch.as_tensor(data["test"].samples("song", "full").features)
    with torch.no_grad():
        scores = parts.predictor(x)
        each = torch.stack([member(x) for member in members_of(parts.predictor)])
    assert scores.shape == (MEMBERS, 70, 7)
    assert torch.equal(scores, each)


def test_an_ensemble_whose_tensors_are_missing(ensemble_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(ensemble_run / "best" / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".members.1." not in name}
    save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((ensemble_run / "best" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"missing: predictor\.members\.1\."):
        load_parts(tmp_path)


def test_stopped_and_resumed_is_the_same(
    data: Data, ensemble_run: Path, accelerator: Accelerator, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped after a member has ended."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    notes = Checkpoint.load(ensemble_run / "best").training["members"]
    stopped = min(note["epoch"] + 2 for note in notes)

    def stop(row: dict[str, float | int]) -> None:
        if row["epoch"] == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, SETTINGS, tmp_path, on_epoch=stop, accelerator=accelerator)
    train(data, SETTINGS, tmp_path, resume=True, accelerator=accelerator)
    for name in ("history.jsonl", "metrics.json", "best/model.safetensors", "best/config.json"):
        assert (tmp_path / name).read_bytes() == (ensemble_run / name).read_bytes(), name


def test_evaluate_says_what_train_said(ensemble_run: Path, shards: Path, tmp_path: Path) -> None:
    report = evaluate_checkpoint(ensemble_run / "best", shards / "test", tmp_path, bootstrap=0)
    said = json.loads((ensemble_run / "metrics.json").read_text())
    for key in ("metrics", "member_metrics", "spread"):
        for head in HEADS:
            assert report[key][head] == pytest.approx(said[key][head], rel=1e-5), key
    assert (report["members"], report["mode"]) == (MEMBERS, "segment")


def test_wrong_ensembles(data: Data, accelerator: Accelerator, tmp_path: Path) -> None:
    pooled = replace(SETTINGS, train_pooling=True)
    with pytest.raises(UsageError, match="an ensemble shares its layer pooling"):
        train(data, pooled, tmp_path, accelerator=accelerator)
    with pytest.raises(UsageError, match="an ensemble of 0 members"):
        PredictorEnsemble([])


def test_bound_runs(
    data: Data, ensemble_run: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    """The members of a bound ensemble are the runs' predictors; its figures are the ensemble's."""
    for i in range(2):
        settings = replace(SETTINGS, members=1, epochs=3, seed=50 + i)
        train(data, settings, tmp_path / str(i), accelerator=accelerator)
    runs = [tmp_path / "0", tmp_path / "1" / "best", ensemble_run]
    report = bind(runs, data, tmp_path / "bound")
    assert report["members"] == 5
    parts = load_parts(tmp_path / "bound" / "best")
    alone = load_parts(tmp_path / "1" / "best").predictor
    second = members_of(parts.predictor)[1].state_dict()
    assert all(torch.equal(value, second[name]) for name, value in alone.state_dict().items())
    checkpoint = Checkpoint.load(tmp_path / "bound" / "best")
    assert [note["seed"] for note in checkpoint.training["members"]] == [50, 51, 42, 43, 44]
    scores = checkpoint.predict(data["test"])
    expected = metrics.mse(scores.mean(axis=1)[:, 0], data["test"].labels[:, 0])
    assert report["metrics"]["score_streams"]["mse"] == pytest.approx(expected, rel=1e-6)
    train(data, TrainSettings(epochs=1, shared=3), tmp_path / "3", accelerator=accelerator)
    with pytest.raises(UsageError, match=r"shared is 3, of .* 2\n.*trunk_widths.*\n.*mode is song"):
        bind([tmp_path / "0", tmp_path / "3"], data, tmp_path / "wrong")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Checkpoint, dict]:
    """Eight members on shards of a known signal."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("known")
    data = load_data(split_folders(write_shards(folder, {**SONGS, "val": 400})), "full")
    settings = TrainSettings(epochs=25, batch_size=128, lr=3e-3, patience=5, members=8)
    output = folder / "run"
    report = train(data, settings, output, accelerator=Accelerator(cpu=True))
    return data, Checkpoint.load(output / "best"), report


@pytest.mark.slow
def test_better_than_one_predictor_and_calibrated(
    known: tuple[Data, Checkpoint, dict], tmp_path: Path
) -> None:
    """In distribution: the mean error over heads is below that of one predictor on all songs.

    No head is more than 2 % worse; the weakest signal, naturalness, is nearly all noise.
    """
    data, _, report = known
    settings = TrainSettings(epochs=25, batch_size=128, lr=3e-3, patience=5)
    one = train(data, settings, tmp_path, accelerator=Accelerator(cpu=True))
    ratios = []
    for head in HEADS:
        ratios.append(report["metrics"][head]["mse"] / one["metrics"][head]["mse"])
        assert report["metrics"][head]["mse"] < report["member_metrics"][head]["mse"], head
        assert 0.90 <= report["spread"][head]["coverage"] <= 0.98, (head, report["spread"][head])
    print("error over one predictor's", dict(zip(HEADS, ratios, strict=True)))
    assert np.mean(ratios) < 1
    assert max(ratios) < 1.02
    ranks = [report["spread"][head]["spearman"] for head in HEADS]
    print("spread", json.dumps(report["spread"]))
    assert np.mean(ranks) > 0


@pytest.mark.parametrize("damage", ["noise", "muted"])
def test_spread_tells_the_error_out_of_distribution(
    damage: str, known: tuple[Data, Checkpoint, dict]
) -> None:
    """Songs damaged more and more, as none was in training: spread and error rise together."""
    data, checkpoint, _report = known
    rng = np.random.default_rng(0)
    split = data["test"]
    amount = rng.uniform(0, 1, (len(split.labels), 1)).astype(np.float32)[split.song]
    shape = split.embeddings.shape
    if damage == "noise":
        changed = split.embeddings + 4 * amount * rng.standard_normal(shape).astype(np.float32)
    else:
        changed = split.embeddings * (rng.random(shape) > amount)
    members = checkpoint.predict(replace(split, embeddings=changed))
    found = spread_measures(members, split.labels, HEADS, checkpoint.config.spread_scale)
    print(damage, json.dumps(found))
    ranks = [found[head]["spearman"] for head in HEADS]
    assert np.mean(ranks) > 0.05
