"""Advantages, the clipped gain and the drift, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from apex_reward.errors import UsageError
from apex_reward.runs.advantages import clipped_gain, drift, group_advantages


def test_advantages_are_rewards_less_their_groups_mean() -> None:
    rewards = torch.tensor([1.0, 5.0, 3.0, 9.0, 2.0])
    found = group_advantages(rewards, ["a", "b", "a", "b", "a"])
    assert found.tolist() == [-1.0, -2.0, 1.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("rewards", "prompts", "message"),
    [
        (torch.ones(2), ["a", "b"], "one song"),
        (torch.ones(3), ["a", "a"], "3\\D+2 prompts"),
        (torch.ones(2, 1), ["a", "a"], "expected \\(B,\\)"),
    ],
)
def test_what_is_no_group_is_refused(
    rewards: torch.Tensor, prompts: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        group_advantages(rewards, prompts)


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


def test_drift_is_zero_only_where_nothing_moved() -> None:
    found = drift(torch.tensor([0.0, math.log(2), -1.0]), torch.tensor([0.0, 0.0, -1.0]))
    assert found.tolist() == pytest.approx([0.0, 0.5 - math.log(0.5) - 1, 0.0], abs=1e-6)
