"""Tensor functions on a fake GPU: a mixed device raises, as on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from apex_reward import Head, Scores
from apex_reward.audio.loudness import loudness_of_blocks
from apex_reward.rewards import panel as panel_module
from apex_reward.rewards.panel import Members
from tests.support import tiny_model

RATE = 24_000
GPU = torch.device("cuda")


class Power:
    """A model of waveforms whose scores come back on the CPU, as from another process."""

    name, heads, sample_rate = "power", (Head("power", 0, 10),), RATE
    differentiable, reads_text = False, False

    def __call__(self, waveforms: Tensor, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        return Scores({"power": torch.zeros(len(waveforms))}, self.heads)


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def test_loudness_of_blocks_stays_on_the_device(fake: None) -> None:
    blocks = [torch.zeros(8_000 * n, device=GPU) for n in (3, 2)]
    assert loudness_of_blocks(blocks, 8_000).device.type == "cuda"
    short = [torch.zeros(800, device=GPU)]
    assert loudness_of_blocks(short, 8_000).device.type == "cuda"


def test_a_panel_with_a_model_of_waveforms_is_scored_on_the_device(
    fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device(GPU):
        model = tiny_model(3)
    # A hash of weights and a check of samples need values, which fake tensors do not have.
    monkeypatch.setattr(type(model.encoders[0]), "fingerprint", lambda self: 0)
    monkeypatch.setattr(panel_module, "checked_songs", lambda songs, lengths: (songs, lengths))
    members = Members({"a": model, "b": Power()})
    songs = torch.zeros(2, RATE, device=GPU)
    scores, _ = members.forward(songs, RATE, [RATE, RATE // 2])
    assert {value.device.type for value in scores.values()} == {"cuda"}
    assert scores.stack().shape == (2, 8)
