"""A policy loop's settings, groups and advantages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from apex_reward.errors import UsageError
from apex_reward.files.tables import read_jsonl
from apex_reward.runs.loop import LoopSettings, PolicyRun, clipped_gain
from apex_reward.runs.settings import RewardSettings, read_prompts


def test_songs_of_a_step_are_whole_groups() -> None:
    own = LoopSettings(per_device_train_batch_size=6, gradient_accumulation_steps=2)
    with pytest.raises(UsageError, match="is 8; expected 2 or more that divide the 12 songs"):
        own.prompts_of_a_step()
    own.num_generations = 1
    with pytest.raises(UsageError, match="--num_generations is 1; expected 2 or more"):
        own.prompts_of_a_step()
    own.num_generations = 3
    assert own.prompts_of_a_step() == 4
    with pytest.raises(UsageError, match="--prompts, a text file"):
        read_prompts(own.prompts)


def test_advantages_follow_the_judge_and_its_floor(
    tmp_path: Path,
) -> None:
    own = LoopSettings(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2
    )  # fmt: skip
    prompts = ["low", "high"]
    run = PolicyRun(own, RewardSettings(), Accelerator(cpu=True), prompts, 24_000, seconds=2.0)
    torch.manual_seed(0)
    songs = torch.sin(torch.rand(4, 1) * torch.arange(48_000)) / 4
    songs[3] = float("nan")
    for step in run.steps():
        texts = run.draw()
        assert texts in (["low", "low", "high", "high"], ["high", "high", "low", "low"])
        found = run.advantages(texts, songs)
        run.log_step({"kl": 0.5})
        assert step == 1
    scored = run.judge(list(songs[:3]), texts[:3]).known
    values = torch.tensor([*scored, run.judge.floor()])
    groups = values.view(2, 2).mean(dim=1).repeat_interleave(2)
    torch.testing.assert_close(found, (values - groups) / (values.std() + 1e-6))
    (row,) = read_jsonl(tmp_path / "history.jsonl.partial")
    assert row["reward"] == pytest.approx(float(values.mean()), abs=1e-6)
    assert row["kl"] == 0.5
    assert row["apex/undecodable"] == 0.25


def test_the_gain_stops_to_count_beyond_the_clip() -> None:
    new = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 0.9]]).log().requires_grad_()
    gain, share = clipped_gain(new, torch.zeros(2, 3), torch.tensor([2.0, -1.0]), 0.2)
    expected = torch.tensor([[2.4, 1.0, 2.2], [-1.5, -0.8, -0.9]])
    torch.testing.assert_close(gain, expected)
    assert share == pytest.approx(4 / 6)
    gain.sum().backward()
    assert new.grad is not None
    # Where the clip is what counts, nothing pulls; elsewhere ratio times advantage does.
    torch.testing.assert_close(new.grad, torch.tensor([[0.0, 1.0, 2.2], [-1.5, 0.0, -0.9]]))
