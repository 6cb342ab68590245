"""Ensembles: members together as apart, better than one, honest about their spread."""

from __future__ import annotations

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
from apex_reward.train.bind import bind
from apex_reward.train.dataset import Data, load_data, split_folders
from apex_reward.train.draws import bootstrap_samples
from apex_reward.train.evaluate import Checkpoint, evaluate_checkpoint, predict_split
from apex_reward.train.report import fit_spread_scale, metrics_report, spread_measures
from apex_reward.train.settings import Condition, TrainSettings
from apex_reward.train.trainer import build_program, train
from tests.train.shards_builder import SONGS, write_shards

MEMBERS = 3
SETTINGS = TrainSettings(epochs=20, batch_size=64, lr=3e-2, patience=2)


@pytest.fixture(scope="module")
def ensemble_run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("ensemble")
    condition = Condition("standardized", mode="segment")
    accelerator = Accelerator(cpu=True)
    train(data, condition, SETTINGS, output, accelerator=accelerator, members=MEMBERS)
    return output


def test_bootstrap_draws_whole_songs() -> None:
    song = np.array([0, 0, 1, 2, 2, 2, 3])
    for seed in range(5):
        rows, weights = bootstrap_samples(song, seed)
        assert len(rows) == 4, "63% of 7"
        of = song[rows]
        assert rows.tolist() == sorted(set(rows.tolist()))
        # All of a song's samples, but for the last song's; a song's samples count alike.
        for number in set(of.tolist()) - {int(of[-1])}:
            assert (of == number).sum() == (song == number).sum()
        assert all(len(set(weights[of == number].tolist())) == 1 for number in set(of.tolist()))
    # One sample a song: it takes about n draws to see 1 - 1/e of n, each as often as was drawn.
    rows, weights = bootstrap_samples(np.arange(10_000), seed=1)
    assert len(rows) == 6321
    assert weights.sum().item() == pytest.approx(10_000, rel=0.02)
    # Poisson, given that it was drawn: once with 1 / (e - 1), twice with half of that.
    shares = [(weights == times).float().mean().item() for times in (1, 2)]
    assert shares == pytest.approx([1 / (np.e - 1), 0.5 / (np.e - 1)], abs=0.015)
    assert not torch.equal(rows, bootstrap_samples(np.arange(10_000), seed=2)[0])
    assert len(bootstrap_samples(np.arange(2), seed=0)[0]) == 2


def test_a_weighted_step_equals_repeated_samples(data: Data, accelerator: Accelerator) -> None:
    """Without batch norms, a sample of weight 2 is the sample listed twice."""
    settings = replace(SETTINGS, bootstrap=True)
    programs = [build_program([Condition()], data, settings, accelerator) for _ in range(2)]
    for program in programs:
        program.stack.eval()  # running statistics: the batch does not matter
    programs[0].draws.draw = programs[1].draws.draw = lambda n, chosen: [
        torch.ones(n, 1, units) for units, _ in programs[0].stack.shape.dropouts
    ]
    weighted = programs[0].train_step(torch.tensor([[3, 5]]), torch.tensor([[2.0, 1.0]]))
    listed = programs[1].train_step(torch.tensor([[3, 3, 5]]))
    for ours, theirs in zip(weighted, listed, strict=True):
        torch.testing.assert_close(ours, theirs)
    first, second = (program.stack.state_of(0) for program in programs)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)


def test_together_as_apart(
    data: Data, ensemble_run: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    """The same metrics, epoch and history for each member trained by itself."""
    checkpoint = Checkpoint.load(ensemble_run / "best")
    together = predict_split(checkpoint, data["test"], "segment")
    assert together.shape == (70, MEMBERS, 7)
    notes = checkpoint.training["members"]
    assert [note["seed"] for note in notes] == [42, 43, 44]
    rows = [json.loads(line) for line in (ensemble_run / "history.jsonl").read_text().splitlines()]
    assert len({note["epoch"] for note in notes}) > 1, "every member stops in its own epoch"
    for i in range(MEMBERS):
        condition = Condition("standardized", mode="segment", seed=42 + i)
        settings = replace(SETTINGS, bootstrap=True)
        apart = train(data, condition, settings, tmp_path / str(i), accelerator=accelerator)
        own = metrics_report({}, together[:, i : i + 1], data["test"].labels, HEADS)["metrics"]
        for head in HEADS:
            assert own[head] == pytest.approx(apart["metrics"][head], abs=1e-3, rel=1e-3)
        losses = [row["val_loss"] for row in rows if row["member"] == i]
        lines = (tmp_path / str(i) / "history.jsonl").read_text().splitlines()
        assert losses == pytest.approx([json.loads(line)["val_loss"] for line in lines], rel=1e-4)
        assert notes[i]["epoch"] == int(np.argmin(losses)) + 1
        assert len(losses) == min(notes[i]["epoch"] + 2, 20)


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
    data: Data, ensemble_run: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    """Stopped after a member has left the program."""
    condition = Condition("standardized", mode="segment")
    stopped = min(
        note["epoch"] + 2
        for note in json.loads((ensemble_run / "best" / "training.json").read_text())["members"]
    )

    def stop(row: dict[str, float | int]) -> None:
        if row["epoch"] == stopped:
            raise KeyboardInterrupt

    arguments = {"accelerator": accelerator, "members": MEMBERS}
    with pytest.raises(KeyboardInterrupt):
        train(data, condition, SETTINGS, tmp_path, on_epoch=stop, **arguments)
    train(data, condition, SETTINGS, tmp_path, resume=True, **arguments)
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
    with pytest.raises(UsageError, match="members is 0; expected 1 or more"):
        train(data, Condition(), SETTINGS, tmp_path, accelerator=accelerator, members=0)
    pooled = replace(SETTINGS, train_pooling=True)
    with pytest.raises(UsageError, match="an ensemble shares its layer pooling"):
        train(data, Condition(), pooled, tmp_path, accelerator=accelerator, members=2)
    with pytest.raises(UsageError, match="an ensemble of 0 members"):
        PredictorEnsemble([])


def test_bound_runs(
    data: Data, ensemble_run: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    """The members of a bound ensemble are the runs' predictors; its figures are the ensemble's."""
    settings = replace(SETTINGS, bootstrap=True, epochs=3)
    for i in range(2):
        condition = Condition("standardized", mode="segment", seed=50 + i)
        train(data, condition, settings, tmp_path / str(i), accelerator=accelerator)
    runs = [tmp_path / "0", tmp_path / "1" / "best", ensemble_run]
    report = bind(runs, data, tmp_path / "bound")
    assert report["members"] == 5
    parts = load_parts(tmp_path / "bound" / "best")
    alone = load_parts(tmp_path / "1" / "best").predictor
    second = members_of(parts.predictor)[1].state_dict()
    assert all(torch.equal(value, second[name]) for name, value in alone.state_dict().items())
    checkpoint = Checkpoint.load(tmp_path / "bound" / "best")
    assert [note["seed"] for note in checkpoint.training["members"]] == [50, 51, 42, 43, 44]
    scores = predict_split(checkpoint, data["test"], "segment")
    expected = metrics.mse(scores.mean(axis=1)[:, 0], data["test"].labels[:, 0])
    assert report["metrics"]["score_streams"]["mse"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UsageError, match="alone is no ensemble"):
        bind(runs[:1], data, tmp_path / "one")
    train(
        data, Condition(shared=3), TrainSettings(epochs=1), tmp_path / "3", accelerator=accelerator
    )
    with pytest.raises(UsageError, match=r"shared is 3, of .* 2\n.*trunk_widths.*\n.*mode is song"):
        bind([tmp_path / "0", tmp_path / "3"], data, tmp_path / "wrong")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Checkpoint, dict]:
    """Eight members on shards of a known signal."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("known")
    data = load_data(split_folders(write_shards(folder, {**SONGS, "val": 400})), "full")
    settings = TrainSettings(epochs=25, batch_size=128, lr=3e-3, patience=5)
    accelerator = Accelerator(cpu=True)
    condition = Condition("standardized")
    output = folder / "run"
    report = train(data, condition, settings, output, accelerator=accelerator, members=8)
    return data, Checkpoint.load(output / "best"), report


def test_better_than_a_member_and_calibrated(known: tuple[Data, Checkpoint, dict]) -> None:
    """In distribution: the mean's error is below a member's, the scaled intervals hold."""
    report = known[2]
    for head in HEADS:
        assert report["metrics"][head]["mse"] < report["member_metrics"][head]["mse"], head
        assert 0.90 <= report["spread"][head]["coverage"] <= 0.98, (head, report["spread"][head])
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
    members = predict_split(checkpoint, replace(split, embeddings=changed), "song")
    found = spread_measures(members, split.labels, HEADS, checkpoint.config.spread_scale)
    print(damage, json.dumps(found))
    ranks = [found[head]["spearman"] for head in HEADS]
    assert np.mean(ranks) > 0.05
