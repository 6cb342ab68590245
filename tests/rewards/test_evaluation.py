"""A reward in evaluation loops: the library evaluate's form and torchmetrics'."""

from __future__ import annotations

import pickle

import pytest
import torch

from apex_reward import Reward
from apex_reward.errors import UsageError
from apex_reward.rewards.evaluation import Evaluation
from apex_reward.rewards.metric import RewardMetric
from tests.support import tiny_model

RATE = 24_000


@pytest.fixture(scope="module")
def reward() -> Reward:
    return Reward(tiny_model(), mix="aesthetics", guards="penalty")


@pytest.fixture(scope="module")
def songs() -> torch.Tensor:
    return torch.randn(4, RATE, generator=torch.Generator().manual_seed(0)) * 0.1


def test_means_and_win_rate(reward: Reward, songs: torch.Tensor) -> None:
    rows = reward.judge(list(songs), sample_rate=RATE)
    values = [row["reward"] for row in rows]
    broken = torch.full((RATE,), float("nan"))
    found = Evaluation(reward).compute(predictions=[*songs, broken], sample_rate=RATE)
    assert found["reward"] == pytest.approx(sum(values) / 4)
    assert found["clarity"] == pytest.approx(sum(row["clarity"] for row in rows) / 4)
    assert (found["songs"], found["unheard"]) == (5, pytest.approx(0.2))
    assert "win_rate" not in found
    evaluation = Evaluation(reward)
    for at in (0, 2):
        evaluation.add_batch(
            predictions=[songs[at], songs[at + 1]],
            references=[songs[at], songs[3 - at]],
            sample_rate=RATE,
        )
    wins = [0.5, float(values[1] > values[3]), 0.5, float(values[3] > values[1])]
    assert evaluation.compute()["win_rate"] == pytest.approx(sum(wins) / 4)
    with pytest.raises(UsageError, match="none of 0 songs"):
        evaluation.compute()


def test_wrong_references_are_named(reward: Reward, songs: torch.Tensor) -> None:
    evaluation = Evaluation(reward)
    with pytest.raises(UsageError, match="1 references for 2 predictions"):
        evaluation.compute(predictions=songs[:2], references=songs[:1], sample_rate=RATE)
    evaluation.add_batch(predictions=songs[:1], sample_rate=RATE)
    with pytest.raises(UsageError, match="with every batch, or with none"):
        evaluation.compute(predictions=songs[:1], references=songs[:1], sample_rate=RATE)


def test_the_metric_is_the_mean_over_batches(reward: Reward, songs: torch.Tensor) -> None:
    lengths = torch.tensor([RATE, RATE // 2])
    short = [songs[0], songs[1, : RATE // 2], songs[2], songs[3]]
    values = [row["reward"] for row in reward.judge(short, sample_rate=RATE)]
    metric = RewardMetric(reward, RATE)
    metric.update(songs[:2], lengths)
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(songs[2:, None].repeat(1, 2, 1))
    assert metric.compute().item() == pytest.approx(sum(values) / 4, abs=1e-4)
    metric.reset()
    metric.update(torch.full((1, RATE), float("nan")))
    assert metric.compute().isnan()
