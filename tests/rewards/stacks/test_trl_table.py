"""TRL 1.16's advantages with two reward functions: what None, -inf and a floor do to a group.

The figures are worked out by hand; docs/guides/stacks.md has them as a table. Two groups of four
songs; the first song of the first group has no score by our function. `Ours` gives the others 1, 2,
3 and 2, 2, 3, 3; the other function gives 50 to every song.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from apex_reward import ApexRewardFunction, Head, Reward, RewardMix, Scores
from tests.rewards.stacks.test_trainers import policy, tokenizer

LEVELS = [None, 0.1, 0.2, 0.3, 0.2, 0.2, 0.3, 0.3]
FLOOR = -0.1  # of 10 * level in [0, 10]: 0, less 1% of 10


class Level:
    """The mean of a song's samples, in [0, 1]."""

    name = "level"
    heads = (Head("level", 0.0, 1.0), Head("double", 0.0, 2.0))
    sample_rate = 8_000
    differentiable = True
    reads_text = False

    def __call__(self, waveforms: Any, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        mean = waveforms.mean(dim=-1)
        return Scores({"level": mean, "double": 2 * mean}, self.heads)


def decode(completions: list[Any]) -> list[Any]:
    return [
        None if level is None else torch.full((80,), level) for level in LEVELS[: len(completions)]
    ]


def ours(undecodable: Any, **options: Any) -> ApexRewardFunction:
    reward = Reward(Level(), RewardMix({"level": 10.0}, "none"))
    return ApexRewardFunction(
        reward, decode=decode, sample_rate=8_000, undecodable=undecodable, **options
    )


def fifty(completions: list[Any], **_: Any) -> list[float]:
    return [50.0] * len(completions)


def minus_infinity(completions: list[Any], **_: Any) -> list[float]:
    """As our function, with -inf in the place of the floor."""
    return [-math.inf if level is None else 10 * level for level in LEVELS]


class Wrapper:
    """A user's own wrapper of a reward function."""

    __name__ = "wrapped"

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *arguments: Any, **columns: Any) -> list[Any]:
        return self.function(*arguments, **columns)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    config = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=8,
        num_generations=4, max_completion_length=2, report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    return GRPOTrainer(
        policy(), reward_funcs=[fifty, ours(0.0).asynchronous], args=config,
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "sing"}, {"prompt": "play"}]),
    )  # fmt: skip


def advantages(
    trainer: GRPOTrainer, functions: list[Any], scale: str = "group",
    aggregation: str = "sum_then_normalize",
) -> list[float]:  # fmt: skip
    """The advantages of two groups of four, by TRL's own code."""
    trainer.reward_funcs = functions
    trainer.reward_processing_classes = [None] * len(functions)
    trainer.reward_func_names = [f"f{i}" for i in range(len(functions))]
    trainer.reward_weights = torch.ones(len(functions))
    trainer.scale_rewards, trainer.multi_objective_aggregation = scale, aggregation
    inputs = [{"prompt": "sing"}] * 4 + [{"prompt": "play"}] * 4
    return trainer._generate_and_score_completions(inputs)["advantages"].tolist()


# Rewards -0.1, 1, 2, 3 and 2, 2, 3, 3: means 1.475 and 2.5, sample deviations 1.330 and 0.577,
# of all eight 1.096. With the second function 50 is added to each, which changes no advantage.
BY_GROUP = [-1.184, -0.357, 0.395, 1.146, -0.866, -0.866, 0.866, 0.866]
BY_BATCH = [-1.437, -0.433, 0.479, 1.391, -0.456, -0.456, 0.456, 0.456]
PLAIN = [-1.575, -0.475, 0.525, 1.525, -0.5, -0.5, 0.5, 0.5]
# The figures of BY_GROUP over their own deviation, 0.926.
NORMALISED = [-1.279, -0.386, 0.426, 1.238, -0.935, -0.935, 0.935, 0.935]


@pytest.mark.parametrize("beside", [[], [fifty]], ids=["alone", "beside another"])
@pytest.mark.parametrize(
    ("scale", "aggregation", "expected"),
    [
        ("group", "sum_then_normalize", BY_GROUP),
        ("batch", "sum_then_normalize", BY_BATCH),
        ("none", "sum_then_normalize", PLAIN),
        ("group", "normalize_then_sum", NORMALISED),
        ("none", "normalize_then_sum", NORMALISED),
    ],
)
def test_a_floor_is_the_worst_of_its_group_under_every_setting(
    trainer: GRPOTrainer, scale: str, aggregation: str, expected: list[float], beside: list[Any]
) -> None:
    found = advantages(trainer, [ours("floor"), *beside], scale, aggregation)
    assert found == pytest.approx(expected, abs=1e-3)
    assert found[0] == min(found[:4])


WRAPS = {"wrapper": Wrapper, "partial": functools.partial, "async": lambda f: f.asynchronous}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_wrapped_functions_have_the_floor_too(trainer: GRPOTrainer, wrap: Any) -> None:
    found = advantages(trainer, [wrap(ours("floor")), fifty])
    assert found == pytest.approx(BY_GROUP, abs=1e-3)


def test_none_of_every_function_leaves_a_row_out(trainer: GRPOTrainer) -> None:
    found = advantages(trainer, [ours(None)])
    # 1, 2, 3 over their own deviation 1
    assert found == pytest.approx([0.0, -1.0, 0.0, 1.0, *BY_GROUP[4:]], abs=1e-3)


def test_one_none_among_two_counts_as_0(trainer: GRPOTrainer) -> None:
    """50 against 51, 52, 53: mean 51.5, deviation 1.291."""
    found = advantages(trainer, [ours(None), fifty])
    assert found[:4] == pytest.approx([-1.162, -0.387, 0.387, 1.162], abs=1e-3)
    # With `normalize_then_sum` the song gets the mean of its group, above a song with a score.
    found = advantages(trainer, [ours(None), fifty], "group", "normalize_then_sum")
    assert found[0] == pytest.approx(0.0, abs=1e-3)
    assert found[0] > found[1]


@pytest.mark.parametrize(
    ("scale", "aggregation", "lost"),
    [
        ("group", "sum_then_normalize", range(4)),
        ("batch", "sum_then_normalize", range(8)),
        ("group", "normalize_then_sum", range(4)),
    ],
)
def test_minus_infinity_takes_its_group_along(
    trainer: GRPOTrainer, scale: str, aggregation: str, lost: range
) -> None:
    """What a veto of -inf would do: the songs beside it learn nothing, or only it is left."""
    found = advantages(trainer, [minus_infinity], scale, aggregation)
    assert [found[i] for i in lost] == [0.0] * len(lost)


def test_minus_infinity_can_make_its_song_the_best(trainer: GRPOTrainer) -> None:
    """Its function counts for nobody in the group any more; another function alone decides."""

    def length(completions: list[Any], **_: Any) -> list[float]:
        return [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

    functions = [minus_infinity, length]
    found = advantages(trainer, functions, "group", "normalize_then_sum")
    assert found[0] == max(found) > 1
    huge = advantages(trainer, [minus_infinity], "none")
    assert max(map(abs, huge[:4])) > 1e38
