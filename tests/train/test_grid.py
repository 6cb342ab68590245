"""The batched grid against separate runs, its files, and its resume."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from apex_reward.scores.apex import POPULARITY_HEADS, task_heads
from apex_reward.train.dataset import Data, load_data, split_folders
from apex_reward.train.grid import run_grid
from apex_reward.train.settings import Condition, TrainSettings, conditions
from apex_reward.train.trainer import build_program, train
from tests.train.shards_builder import RHO, SONGS, reachable_spearman, write_shards

LOSSES = ("equal", "weighted", "uncertainty", "standardized")
SMALL = [Condition(loss, seed=seed) for loss in LOSSES for seed in (42, 43)]
SMALL += [Condition(loss, 3, "segment", "popularity") for loss in ("equal", "uncertainty")]


def test_grid_equals_separate_runs(data: Data, accelerator: Accelerator, tmp_path: Path) -> None:
    """Also where models stop early, each in its own epoch."""
    settings = TrainSettings(epochs=10, batch_size=64, lr=1e-2, patience=2)
    left: dict[str, list[int]] = {}
    rows = run_grid(
        data,
        SMALL,
        settings,
        tmp_path / "grid",
        accelerator=accelerator,
        on_epoch=lambda group, epoch, models, means: left.setdefault(group, []).append(models),
    )
    assert any(0 < count < 8 for counts in left.values() for count in counts)
    for number, condition in enumerate(SMALL):
        folder = tmp_path / str(number)
        report = train(data, condition, settings, folder, accelerator=accelerator)
        chosen = [row for row in rows if all(row[k] == v for k, v in vars(condition).items())]
        assert [row["head"] for row in chosen] == list(report["metrics"])
        for row in chosen:
            for name, value in report["metrics"][row["head"]].items():
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (condition, row)


def test_killed_grid_resumes_with_the_same_bytes(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    chosen, settings = SMALL[:8:3], TrainSettings(epochs=4, batch_size=64, lr=3e-3)
    run_grid(data, chosen, settings, tmp_path / "whole", accelerator=accelerator)

    def stop(group: str, epoch: int, models: int, means: dict[str, float]) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run_grid(data, chosen, settings, broken, accelerator=accelerator, on_epoch=stop)
    run_grid(data, chosen, settings, broken, accelerator=accelerator, resume=True)
    files = sorted(p.relative_to(broken) for p in broken.rglob("*") if p.is_file())
    assert files
    for file in files:
        if file.suffix != ".pt":
            assert (broken / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_results_have_a_row_per_condition_seed_and_head(
    data: Data, accelerator: Accelerator, tmp_path: Path
) -> None:
    table = conditions(seeds=(1, 2))
    settings = TrainSettings(epochs=1, batch_size=128)
    run_grid(data, table, settings, tmp_path, accelerator=accelerator, paper_data=True)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["loss", "shared", "mode", "task", "seed", "head", "mse", "mae", "pearson", "spearman"]
    assert list(rows[0]) == names
    assert len(rows) == sum(len(task_heads(c.task)) for c in table) == 2 * 12 * (2 + 7)
    assert (tmp_path / "models" / "equal-2-song-full-1" / "model.safetensors").is_file()
    for name in ("table1", "table2"):
        for ending in ("md", "csv", "tex"):
            assert (tmp_path / f"{name}.{ending}").stat().st_size > 0
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 1 + 24 * 8 + 30 * 4


@pytest.mark.slow
def test_all_conditions_recover_the_signal(accelerator: Accelerator, tmp_path: Path) -> None:
    """24 conditions on the popularity heads; `standardized` on all seven within 25 epochs."""
    data = load_data(split_folders(write_shards(tmp_path / "shards")), "full")
    table = [*conditions(), Condition("standardized"), Condition("standardized", 3)]
    settings = TrainSettings(epochs=15, batch_size=128, lr=5e-3)
    rows = run_grid(data, table, settings, tmp_path / "grid", accelerator=accelerator)
    for row in rows:
        popular = row["head"] in POPULARITY_HEADS
        if popular or row["loss"] == "standardized":
            # Three standard errors of a rank correlation over the test songs.
            bound = reachable_spearman(row["head"], SONGS["train"]) - 3 / np.sqrt(SONGS["test"])
            assert row["spearman"] > bound, row


@pytest.mark.slow
def test_uncertainty_finds_the_noisier_heads(accelerator: Accelerator, tmp_path: Path) -> None:
    """Run long enough, sigma orders the aesthetic heads by what cannot be predicted of them."""
    shards = write_shards(tmp_path / "shards", {"train": 1500, "val": 200, "test": 100})
    data = load_data(split_folders(shards), "full")
    settings = TrainSettings(epochs=60, batch_size=128, lr=1e-2, patience=60)
    train(data, Condition("uncertainty"), settings, tmp_path, accelerator=accelerator)
    last = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])
    aesthetic = [head for head in RHO if head not in POPULARITY_HEADS]
    sigmas = [last[f"sigma_{head}"] for head in aesthetic]
    assert sigmas == sorted(sigmas)
    assert min(last[f"sigma_{head}"] for head in POPULARITY_HEADS) > 5 * max(sigmas)


def test_models_that_stay_are_not_touched_by_one_that_leaves(
    data: Data, accelerator: Accelerator
) -> None:
    """Weights, running statistics and the optimiser's memory stay with their model."""
    table = [Condition(loss, seed=seed) for loss, seed in zip(LOSSES, (1, 2, 2, 3), strict=True)]
    settings = TrainSettings(epochs=9, batch_size=64, lr=1e-2)
    whole = build_program(table, data, settings, accelerator)
    part = build_program([table[1], table[3]], data, settings, accelerator)
    for program in (whole, part):
        program.run_epoch()
    whole.active = [1, 3]
    whole.resize(torch.tensor([1, 3]))
    for program in (whole, part):
        program.run_epoch()
    for model in range(2):
        expected = part.stack.state_of(model)
        for name, value in whole.stack.state_of(model).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
