"""One judge behind every stack: floor, scale, single calls, threads, forks, pickles."""

from __future__ import annotations

import math
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from apex_reward import Head, Reward, RewardMix, Scores
from apex_reward.errors import UsageError
from apex_reward.rewards.groups import prompt_keys
from apex_reward.rewards.judge import Judge
from tests.support import guards_of, tiny_model

RATE = 8_000


class Level:
    """`power` is the mean of the samples: NaN below 0, an exception above 0.8."""

    name = "level"
    heads = (Head("power", 0.0, 1.0), Head("twice", -math.inf, math.inf))
    sample_rate = RATE
    differentiable = True
    reads_text = False

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, waveforms: Tensor, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        self.batches.append(len(waveforms))
        mean = waveforms.mean(dim=-1)
        if bool((mean > 0.8).any()):
            raise RuntimeError("too loud for this model")
        power = torch.where(mean < 0, torch.nan, mean)
        return Scores({"power": power, "twice": 2 * power}, self.heads)


def level(value: float) -> tuple[Tensor, int]:
    return torch.full((100,), value), RATE


SONGS = [level(0.5), None, level(-0.1), (torch.zeros(0), RATE), "absent.wav", level(0.9)]


@pytest.mark.parametrize(
    ("mix", "guards", "floor"),
    [
        ("power=1", None, -0.01),
        ("power=-2", None, -2.02),
        ("power=1", "penalty", -0.01 - 11 * 0.5),  # eleven guards, 0.5 each
        ("power=1", "veto", -0.01),
    ],
)
def test_what_has_no_score_earns_the_floor(mix: str, guards: Any, floor: float) -> None:
    """No song, a NaN score, no samples, no file, a model that fails: each the same."""
    judge = Judge(Reward(Level(), mix, guards=guards))
    found = judge(SONGS)
    assert found.rewards[1:] == pytest.approx([floor] * 5)
    assert judge.floor() == pytest.approx(floor)
    assert [row is None for row in found.rows] == [False, *[True] * 5]
    assert set(found.reasons) == {1, 2, 3, 4, 5}
    assert "not finite" in found.reasons[2]
    assert "too loud for this model" in found.reasons[5]
    assert found.rewards[0] > floor or guards == "veto"
    assert all(type(one["score"]) is float for one in judge.answers(found))


def test_undecodable_is_a_number_or_none() -> None:
    reward = Reward(Level(), "power=1")
    assert Judge(reward, undecodable=-3.0)(SONGS).rewards[1:] == [-3.0] * 5
    assert Judge(reward, undecodable=None)(SONGS).rewards[1:] == [None] * 5
    endless = Reward(Level(), RewardMix({"twice": 1.0}, "none"))
    with pytest.raises(UsageError, match="no lowest value"):
        Judge(endless)
    assert Judge(endless, undecodable=-3.0)(SONGS[:2]).rewards == pytest.approx([1.0, -3.0])
    with pytest.raises(UsageError, match="no range to map"):
        Judge(endless, undecodable=-3.0, scale="range")
    with pytest.raises(UsageError, match="scale is 'unit'"):
        Judge(reward, scale="unit")  # type: ignore[arg-type]


def test_scale_range_maps_the_mix_and_guards_come_after_it() -> None:
    """40 * power lies in [0, 40]: power 0.5 is 0.5 of it, of which the guard `dc` takes 0.25."""
    guards = guards_of(["dc"], "penalty", 0.25)
    reward = Reward(Level(), RewardMix({"power": 40.0}, "none"), guards=guards)
    judge = Judge(reward, scale="range")
    assert judge.ends == (0.0, 40.0)
    assert judge(SONGS).rewards[:2] == pytest.approx([0.5 - 0.25, -0.25 - 0.01])
    plain = Judge(reward)
    assert plain(SONGS).rewards[:2] == pytest.approx([20 - 0.25, -0.25 - 0.4])
    # An ensemble of spread 0 and caution: the floor is lower by the largest caution.
    ensemble = Reward(tiny_model(3, members=2), "clarity=2", caution=0.5)
    assert Judge(ensemble).floor() == pytest.approx(0 - 0.5 * 2 / 2 - 0.02)
    assert Judge(ensemble, scale="range").floor() == pytest.approx(-0.25 - 0.01)


def test_groups_of_one_call() -> None:
    """Two songs of `a` are a deviation from their mean; the lone one of `b` is 0."""
    judge = Judge(Reward(Level(), RewardMix({"power": 1.0}, "group")))
    songs = [level(0.2), level(0.6), level(0.7), None]
    found = judge(songs, ["a", "a", "b", "b"])
    # Three songs in all: a z-score lies within sqrt(2), and the range is twice that.
    floor = -math.sqrt(2) - 0.02 * math.sqrt(2)
    assert found.rewards == pytest.approx([-1.0, 1.0, 0.0, floor], abs=1e-5)
    figures = judge.figures(found, prompt_keys(["a", "a", "b", "b"]))
    assert figures["apex/undecodable"] == 0.25
    with pytest.raises(UsageError, match="needs all songs of a prompt in one call"):
        judge.submit(level(0.2), "a")


def test_single_calls_share_batches_and_fail_alone() -> None:
    judge = pickle.loads(pickle.dumps(Judge(Reward(Level(), "power=1"))))
    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda n: judge.submit(level(0.1 * (n % 5)), "p"), range(40)))
        scores = [future.result(timeout=60)["score"] for future in futures]
    assert scores == pytest.approx([0.1 * (n % 5) for n in range(40)], abs=1e-6)
    good, bad = judge.submit(level(0.5), "p"), judge.submit(torch.zeros(100), "p")
    assert good.result(timeout=60)["score"] == pytest.approx(0.5)
    with pytest.raises(UsageError, match="samples without a rate"):
        bad.result(timeout=60)
    assert judge.submit(torch.zeros(100), "p", RATE).result(timeout=60)["score"] == 0.0
    cancelled = judge.submit(level(0.3), "p")
    cancelled.cancel()
    assert judge.submit(level(0.4), "p").result(timeout=60)["decoded"] == 1.0


def test_a_forked_child_answers() -> None:
    """The parent's thread is not in the child, and its lock may be held by another thread."""
    judge = Judge(Reward(Level(), "power=1"))
    assert judge.submit(level(0.5), "p").result(timeout=60)["score"] == pytest.approx(0.5)
    read, write = os.pipe()
    with judge._lock:
        child = os.fork()
    if child == 0:
        score = judge.submit(level(0.25), "p").result(timeout=60)["score"]
        os.write(write, str(score).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert float(os.read(read, 100)) == pytest.approx(0.25)
