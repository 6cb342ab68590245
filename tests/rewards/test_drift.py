"""Distance and spread beside the reward: of songs, of batches, through TRL's function and loops."""

from __future__ import annotations

import math

import pytest
import torch

from apex_reward import ApexRewardFunction, Reward
from apex_reward.errors import AudioError
from apex_reward.rewards.distance import (
    drift_figures,
    embedding_spread,
    frechet_distance,
    song_embeddings,
)
from apex_reward.rewards.groups import prompt_keys
from apex_reward.rewards.judge import Judge
from tests.support import golden_song, tiny_model


@pytest.fixture(scope="module")
def reward() -> Reward:
    return Reward(tiny_model(3), "aesthetics", guards="penalty")


def songs(count: int, first: int = 0) -> list[torch.Tensor]:
    return [torch.tensor(golden_song(first + n, 24_000, 1, 0.5)[0]) for n in range(count)]


def test_figures_by_hand() -> None:
    right = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    found = drift_figures(right, ["a", "b", "b"], right + torch.tensor([3.0, 4.0]))
    assert found["embedding_spread"] == pytest.approx(1.0)  # b's two songs stand at a right angle
    assert found["distance"] == pytest.approx(25.0)  # the same shape, five away
    assert drift_figures(right[:1], ["a"], right) == {}
    assert "distance" not in drift_figures(right, None, None)


def test_embeddings_are_the_models_own_and_refuse_what_is_no_song(reward: Reward) -> None:
    found = song_embeddings(reward, songs(2), sample_rate=24_000)
    expected = torch.cat([reward.model.embed(song[None], 24_000) for song in songs(2)])
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(AudioError, match="song 0: holds no audio"):
        song_embeddings(reward, [torch.zeros(0)], sample_rate=24_000)


def test_a_loop_and_trl_log_the_same_beside_the_reward(reward: Reward) -> None:
    items = [*songs(3), None]
    prompts = ["low", "low", "high", "high"]
    reference = song_embeddings(reward, songs(4, first=10), sample_rate=24_000)
    judge = Judge(reward, sample_rate=24_000, reference=reference)
    found = judge(items, prompts)
    function = ApexRewardFunction(
        reward, decode=lambda prompts: items, sample_rate=24_000, reference=reference
    )
    logged: dict[str, float] = {}
    assert function(prompts, [""] * 4, log_metric=logged.__setitem__) == found.rewards
    assert logged == judge.figures(found, prompt_keys(prompts))
    rows = reward.judge(songs(3), sample_rate=24_000)
    assert found.rewards == pytest.approx(
        [*(row["reward"] for row in rows), judge.floor()], abs=1e-5
    )
    assert sum(found.known) / 3 == pytest.approx(sum(row["reward"] for row in rows) / 3, abs=1e-5)
    assert [row["flags"] for row in found.scored] == [row["flags"] for row in rows]
    embedded = song_embeddings(reward, songs(3), sample_rate=24_000)
    assert logged["apex/embedding_spread"] == pytest.approx(embedding_spread(embedded[:2]))
    assert logged["apex/distance"] == pytest.approx(frechet_distance(embedded, reference), abs=1e-6)
    assert logged["apex/undecodable"] == 0.25
    assert found.vectors[3] is None


def test_a_loop_of_nothing_logs_no_distance(reward: Reward) -> None:
    judge = Judge(reward, undecodable=None)
    found = judge([None, None])
    assert found.known == []
    assert found.rewards == [None, None]
    figures = judge.figures(found, ["", ""])
    assert not any(math.isnan(value) for value in figures.values())
    assert "apex/distance" not in figures
