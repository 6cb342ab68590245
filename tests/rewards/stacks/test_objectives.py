"""One function per objective: the options, songs and forward of the single function."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from typing import Any

import pytest
import torch

from apex_reward import ApexRewardFunction, Reward, RewardMix
from apex_reward.errors import UsageError
from tests.rewards.stacks.test_trl_table import Level
from tests.support import guards_of

RATE = 8_000
MIX = RewardMix({"level": 1.0, "double": -0.5})
# Both heads at their ends: [-0.5, 1]; the floor is 1% of 1.5 below it.
FLOOR = -0.515


class Decode:
    """Levels of a column to songs; counts its calls."""

    sample_rate = RATE

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, levels: list[Any], seeds: Any = None) -> list[Any]:
        self.calls += 1
        return [None if level is None else torch.full((80,), level) for level in levels]


def make(guards: Any = None, **options: Any) -> ApexRewardFunction:
    return ApexRewardFunction(Reward(Level(), MIX, guards=guards), decode=Decode(), **options)


def ask(objective: Any, levels: list[Any], completions: Any = None, **columns: Any) -> list[Any]:
    texts = completions or ["c"] * len(levels)
    return objective(["p"] * len(levels), texts, levels=levels, **columns)


def test_values_are_the_heads_and_the_floor_is_worse_under_the_sign_of_the_mix() -> None:
    function = make()
    level, double = function.objectives()
    assert (level.__name__, double.__name__) == ("level", "double")
    assert ask(level, [0.25, None]) == pytest.approx([0.25, FLOOR])
    # Its weight is negative: 1% of its range above its highest value 2.
    assert ask(double, [0.25, None]) == pytest.approx([0.5, 2.02])
    assert function.decode.calls == 1
    weighted = [
        sum(w * v for w, v in zip(MIX.weights.values(), pair, strict=True))
        for pair in zip(ask(level, [0.0, 1.0, None]), ask(double, [0.0, 1.0, None]), strict=True)
    ]
    assert weighted[2] < min(weighted[:2])


@pytest.mark.parametrize(
    ("action", "level_value", "double_value"),
    [("flag", 0.25, 0.5), ("penalty", 0.0, 2.0), ("veto", None, 2.02)],
)
def test_guards_act_in_each_objective(
    action: Any, level_value: float | None, double_value: float
) -> None:
    """The guard `dc` trips on a constant song."""
    function = make(guards_of(["dc"], action))
    level, double = function.objectives()
    floor = function.judge.floor()
    assert ask(level, [0.25, None]) == pytest.approx(
        [floor if level_value is None else level_value, floor]
    )
    assert ask(double, [0.25, None]) == pytest.approx([double_value, 2.02])


@pytest.mark.parametrize("undecodable", [-7.0, None])
def test_undecodable_is_that_of_the_function(undecodable: float | None) -> None:
    function = make(undecodable=undecodable)
    for objective in function.objectives():
        assert ask(objective, [None, 0.5])[0] == undecodable
    assert function([""], ["c"], levels=[None]) == [undecodable]


def test_every_column_that_decode_reads_is_part_of_the_key() -> None:
    """Same prompts and completions with other songs are another batch; equal values are not."""
    function = make()
    level, double = function.objectives()
    assert ask(level, [0.25])[0] == pytest.approx(0.25)
    assert ask(level, [0.5])[0] == pytest.approx(0.5)
    assert ask(double, [0.5])[0] == pytest.approx(1.0)
    assert function.decode.calls == 2
    songs = [0.25, 0.5]
    assert ask(level, songs) == pytest.approx([0.25, 0.5])
    songs[0] = 0.75  # a list that changes in place
    assert ask(level, songs) == pytest.approx([0.75, 0.5])
    seeds = [torch.arange(2000)]  # tensors by identity: their text leaves the middle out
    ask(level, [0.5], seeds=seeds)
    ask(double, [0.5], seeds=seeds)
    assert function.decode.calls == 5
    ask(level, [0.5], seeds=[torch.arange(2000)])
    assert function.decode.calls == 6


def test_objectives_pickle_and_have_an_asynchronous_form() -> None:
    level, double = pickle.loads(pickle.dumps(make().objectives()))
    assert level.shared is double.shared
    assert ask(level, [0.25]) == pytest.approx([0.25])
    level, double = make().objectives(asynchronous=True)
    assert inspect.iscoroutinefunction(level.__call__)

    async def both() -> list[Any]:
        return await asyncio.gather(ask(level, [0.25, None]), ask(double, [0.25, None]))

    assert asyncio.run(both()) == [pytest.approx([0.25, FLOOR]), pytest.approx([0.5, 2.02])]
    assert level.shared.function.decode.calls == 1


def test_what_has_no_objectives() -> None:
    endless = Level()
    endless.heads = (endless.heads[0], type(endless.heads[0])("double"))
    mix = RewardMix({"level": 1.0, "double": 1.0}, "none")
    function = ApexRewardFunction(Reward(endless, mix), decode=Decode(), undecodable=-1.0)
    assert ask(function.objectives()[1], [0.5, None]) == pytest.approx([1.0, -1.0])
    function = ApexRewardFunction(
        Reward(endless, mix, guards=guards_of(["dc"], "penalty")), decode=Decode(), undecodable=-1.0
    )
    with pytest.raises(UsageError, match="double has no worst value"):
        function.objectives()
