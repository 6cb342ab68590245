"""Conditions and settings: what is refused, and the order of the paper's table."""

from __future__ import annotations

import math

import pytest

from apex_reward.errors import UsageError
from apex_reward.train.settings import Condition, TrainSettings, conditions, ensemble


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mean"}, "loss is 'mean'; expected one of equal, weighted, uncertainty, stand"),
        ({"shared": 4}, "shared is 4; expected 2 or 3 trunk layers"),
        ({"mode": "album"}, "mode is 'album'; expected one of"),
        ({"task": "all"}, "all"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
    ],
)
def test_conditions_that_are_none_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Condition(**changes)
    assert Condition(seed=0).seed == 0


@pytest.mark.parametrize(
    ("name", "least", "refused"),
    [
        ("epochs", 1, 0), ("batch_size", 2, 1), ("patience", 1, 0), ("weight_decay", 0.0, -1e-9),
        ("lr", 1e-9, 0.0), ("lr", 1e9, math.inf), ("clip", 1e-9, 0.0), ("precision", "bf16", "f8"),
    ],
)  # fmt: skip
def test_settings_have_bounds(name: str, least: object, refused: object) -> None:
    assert getattr(TrainSettings(**{name: least}), name) == least
    with pytest.raises(UsageError, match=f"^{name} is {refused}; expected"):
        TrainSettings(**{name: refused})


def test_the_defaults_are_the_paper_s() -> None:
    assert TrainSettings().to_dict() == {
        "epochs": 50, "batch_size": 512, "lr": 1e-4, "weight_decay": 1e-4, "patience": 20,
        "precision": "no", "clip": 1.0, "train_pooling": False, "bootstrap": False,
    }  # fmt: skip
    assert Condition() == Condition("uncertainty", 2, "song", "full", 42)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(UsageError, match="^epochs is 0; .*; clip is 0; expected more than 0$"):
        TrainSettings(epochs=0, clip=0)


def test_conditions_follow_the_paper_s_table() -> None:
    table = conditions(seeds=(1, 2))
    assert table[0] == Condition("equal", 2, "segment", "popularity", 1)
    assert table[1].seed == 2
    assert (table[2].task, table[4].mode) == ("full", "song")
    assert (table[23].shared, table[24].shared) == (2, 3)
    assert {condition.group for condition in table[:8]} == {
        (2, mode, task) for mode in ("segment", "song") for task in ("popularity", "full")
    }
    assert [member.seed for member in ensemble(table[1], 3)] == [2, 3, 4]
    assert ensemble(table[1], 1) == [table[1]]
    with pytest.raises(UsageError, match="members is 0"):
        ensemble(table[1], 0)
