"""Gradient ascent on the waveform: rises, promises kept, steps of the asked size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_reward.demo.climb import climb


class Alignment:
    """Reward = how much of a fixed pattern a song holds: linear, so gradients are exact."""

    def __init__(self, pattern: np.ndarray) -> None:
        self.pattern = torch.from_numpy(pattern)

    def reward(self, waves: torch.Tensor, sample_rate: int, mix: str) -> torch.Tensor:
        assert (sample_rate, mix) == (8000, "aesthetics")
        return waves @ self.pattern


def test_steps_of_a_linear_reward_worked_by_hand() -> None:
    song = np.array([0.5, -0.5, 0.5, -0.5], dtype=np.float32)
    pattern = np.array([3.0, 4.0, 0.0, 0.0], dtype=np.float32)
    result = climb(Alignment(pattern), song, 8000, steps=2, size=0.1)
    # RMS of the song 0.5, of the gradient 2.5: a step adds 0.05 / 2.5 of the pattern.
    step = 0.02 * pattern
    np.testing.assert_allclose(result.song, song + 2 * step, atol=1e-6)
    assert result.predicted == pytest.approx(0.5, abs=1e-6)
    assert result.rewards == pytest.approx([-0.5, 0.0, 0.5], abs=1e-6)
    np.testing.assert_array_equal(song, np.array([0.5, -0.5, 0.5, -0.5], dtype=np.float32))


def test_samples_stay_in_range() -> None:
    song = np.array([0.99, -0.99], dtype=np.float32)
    result = climb(Alignment(np.ones(2, np.float32)), song, 8000, steps=3, size=0.5)
    assert np.abs(result.song).max() <= 1
    assert result.rewards[-1] > result.rewards[0]
