"""Audiobox as a reward model, with a made-up predictor."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from apex_reward.errors import AudioError, UsageError
from apex_reward.rewards.foreign.audiobox import Audiobox
from apex_reward.rewards.protocol import RewardModel

SONGS = torch.linspace(-0.5, 0.5, 2 * 2 * 800).reshape(2, 2, 800)


class Predictor:
    """Four axes that follow from a song's length and mean; remembers what it was given."""

    def __init__(self, as_text: bool) -> None:
        self.as_text, self.seen = as_text, []

    def forward(self, batch: list[dict[str, Any]]) -> list[Any]:
        self.seen += [(song["path"].shape, song["sample_rate"]) for song in batch]
        rows = [
            {"CE": 1.5, "CU": song["path"].shape[1] / 100, "PC": 3.0, "PQ": 4.0} for song in batch
        ]
        return [json.dumps(row) for row in rows] if self.as_text else rows


@pytest.mark.parametrize("as_text", [True, False])
def test_each_song_is_heard_mono_at_its_own_length(as_text):
    predictor = Predictor(as_text)
    scores = Audiobox(predictor)(SONGS, 16_000, lengths=torch.tensor([800, 300]))
    assert predictor.seen == [((1, 800), 16_000), ((1, 300), 16_000)]
    assert scores.names == ("enjoyment", "usefulness", "complexity", "quality")
    assert all((head.low, head.high) == (1.0, 10.0) for head in scores.heads)
    assert scores.usefulness.tolist() == [8.0, 3.0]
    assert scores.enjoyment.tolist() == [1.5, 1.5]
    assert scores.complexity.tolist() == [3.0, 3.0]
    assert scores.quality.tolist() == [4.0, 4.0]


def test_gradients_are_refused_where_they_are_asked_for():
    model = Audiobox(Predictor(as_text=False))
    assert isinstance(model, RewardModel)
    assert not model.differentiable
    songs = SONGS.clone().requires_grad_()
    with pytest.raises(UsageError, match="audiobox is not differentiable"):
        model(songs, 16_000)
    with torch.no_grad():
        assert model(songs, 16_000).songs == 2
    assert model(SONGS[:0], 16_000).songs == 0


def test_bad_songs_are_refused():
    model = Audiobox(Predictor(as_text=False))
    with pytest.raises(UsageError, match="1 lengths were given for 2 songs"):
        model(SONGS, 16_000, lengths=[800])
    with pytest.raises(UsageError, match="between 1 and T"):
        model(SONGS, 16_000, lengths=[800, 801])
    with pytest.raises(AudioError, match="NaN"):
        model(SONGS * float("nan"), 16_000)
