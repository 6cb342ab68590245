"""Settings: what is refused, the paper's recipe, and the order of the paper's table."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from apex_reward.errors import UsageError
from apex_reward.train.settings import Schedule, TrainSettings, conditions


@pytest.mark.parametrize(
    ("name", "least", "refused"),
    [
        ("epochs", 1, 0), ("batch_size", 2, 1), ("patience", 1, 0), ("weight_decay", 0.0, -1e-9),
        ("lr", 1e-9, 0.0), ("lr", 1e9, math.inf), ("precision", "bf16", "f8"), ("seed", 0, -1),
        ("shared", 3, 4), ("loss", "equal", "mean"), ("mode", "segment", "album"),
        ("task", "popularity", "all"), ("members", 1, 0), ("select", "val_loss", "val"),
    ],
)  # fmt: skip
def test_settings_have_bounds(name: str, least: object, refused: object) -> None:
    assert getattr(TrainSettings(**{name: least}), name) == least
    with pytest.raises(UsageError, match=f"^{name} is {refused}; expected"):
        TrainSettings(**{name: refused})


def test_the_schedule_is_the_paper_s_and_the_loss_is_not() -> None:
    assert TrainSettings().to_dict() == {
        "epochs": 50, "batch_size": 512, "lr": 1e-4, "weight_decay": 1e-4, "patience": 20,
        "precision": "no", "train_pooling": False, "loss": "standardized", "shared": 2,
        "mode": "song", "task": "full", "seed": 42, "members": 1, "select": "val_error",
        "paper": False,
    }  # fmt: skip


def test_paper_sets_the_whole_recipe() -> None:
    paper = TrainSettings(paper=True, seed=7)
    assert (paper.loss, paper.members, paper.select) == ("uncertainty", 1, "val_loss")
    assert replace(paper, epochs=3).loss == "uncertainty"
    with pytest.raises(UsageError, match="--paper sets members to 1; leave out --members"):
        TrainSettings(paper=True, members=8)
    with pytest.raises(UsageError, match="--paper sets loss to uncertainty"):
        TrainSettings(paper=True, loss="equal")


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(UsageError, match="^epochs is 0; .*; lr is 0; expected more than 0; shared"):
        TrainSettings(epochs=0, lr=0, shared=1)


def test_conditions_follow_the_paper_s_table_and_rule() -> None:
    table = conditions(seeds=(1, 2), schedule=Schedule(epochs=3))
    first = {"loss": "equal", "shared": 2, "mode": "segment", "task": "popularity", "seed": 1}
    assert table[0].condition == first
    assert {(run.select, run.epochs, run.members) for run in table} == {("val_loss", 3, 1)}
    assert table[1].seed == 2
    assert (table[2].task, table[4].mode) == ("full", "song")
    assert (table[23].shared, table[24].shared) == (2, 3)
    members = TrainSettings(seed=2, members=3).each()
    assert [member.seed for member in members] == [2, 3, 4]


def test_settings_load_without_torch() -> None:
    code = "import sys, apex_reward.train.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
