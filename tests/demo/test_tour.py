"""The tour's sections: gradient steps by hand, pairs of versions, votes with a known answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apex_reward.demo.tour import (
    BATTLES,
    SLOPE,
    arena_section,
    climb,
    pairs_section,
    simulated_votes,
)
from apex_reward.files.tables import read_jsonl
from tests.support import write_wav


class Alignment:
    """Reward = how much of a fixed pattern a song holds: linear, so gradients are exact."""

    def __init__(self, pattern: np.ndarray) -> None:
        self.pattern = torch.from_numpy(pattern)

    def reward(self, waves: torch.Tensor, sample_rate: int, mix: str) -> torch.Tensor:
        assert (sample_rate, mix) == (24_000, "aesthetics")
        return waves @ self.pattern


def test_steps_of_a_linear_reward_worked_by_hand() -> None:
    song = np.array([0.5, -0.5, 0.5, -0.5], dtype=np.float32)
    pattern = np.array([3.0, 4.0, 0.0, 0.0], dtype=np.float32)
    result = climb(Alignment(pattern), song, song, sizes=(0.1, 0.2))
    # RMS of the song 0.5, of the gradient 2.5: the steps add 0.05 / 2.5 and 0.1 / 2.5 patterns.
    np.testing.assert_allclose(result.song, song + 0.06 * pattern, atol=1e-6)
    assert result.predicted == pytest.approx(0.5, abs=1e-6)
    assert result.rewards == pytest.approx([-0.5, 0.0, 1.0], abs=1e-6)
    shares = [np.corrcoef(song, song + k * pattern)[0, 1] ** 2 for k in (0, 0.02, 0.06)]
    assert result.gold == pytest.approx(shares, abs=1e-5)
    np.testing.assert_array_equal(song, np.array([0.5, -0.5, 0.5, -0.5], dtype=np.float32))


def test_samples_stay_in_range() -> None:
    song = np.array([0.99, -0.99], dtype=np.float32)
    result = climb(Alignment(np.ones(2, np.float32)), song, song, sizes=(0.5, 0.5, 0.5))
    assert np.abs(result.song).max() <= 1
    assert result.rewards[-1] > result.rewards[0]


def test_versions_of_a_song_are_paired_best_against_worst(tmp_path: Path) -> None:
    rows = []
    for n, value in enumerate((2.0, 4.5, 3.0, 3.5, 1.0)):
        song = write_wav(tmp_path / "audio" / f"version{n}.wav", seconds=0.2, seed=n)
        row = {"path": str(song), "prompt_id": f"song {n // 3}", "musicality": value}
        rows.append({**row, "flags": ["short"], "error": None, "severity": n})
    section = pairs_section(tmp_path, rows)
    pairs = read_jsonl(tmp_path / "pairs" / "pairs.jsonl")
    assert [(pair["chosen"][-5], pair["rejected"][-5]) for pair in pairs] == [
        ("1", "0"),
        ("3", "4"),
    ]
    assert "5 versions of 2 songs -> 2 preference pairs" in section.text
    assert section.rows[0] == ["song 0", "version1.wav", "version0.wav", 2.5]
    assert "data:audio/" in (tmp_path / "pairs" / "report.html").read_text()


def scored(count: int) -> list[dict[str, object]]:
    values = np.random.default_rng(0).uniform(2, 4, count).tolist()
    return [{"path": f"song{n}.wav", "musicality": v, "error": None} for n, v in enumerate(values)]


def test_the_known_answer_is_in_the_measured_interval(tmp_path: Path) -> None:
    rows = scored(10)
    rows[3] |= {"musicality": None, "error": "not audio"}
    section = arena_section(tmp_path, rows)
    metrics = json.loads((tmp_path / "arena" / "metrics.json").read_text())
    low, high = metrics["scores"]["musicality"]["overall"]["accuracy_ci95"]
    known = simulated_votes(rows)[1]
    assert f"right on {known:.1%} of such votes" in section.text
    assert low < known < high
    assert metrics["scores"]["musicality"]["overall"]["direction"] == "agrees"
    assert metrics["scores"]["coin"]["overall"]["direction"] == "undetermined"
    assert "musicality agrees with people" in section.text
    assert (tmp_path / "arena" / "report.html").exists()
    assert "song3.wav" not in (tmp_path / "arena" / "battles.csv").read_text()


def test_the_known_answer_is_the_mean_chance_of_the_better_side() -> None:
    rows, best = simulated_votes(scored(2))
    assert len(rows) == BATTLES
    # Two standardised values are 1 and -1: every battle has a difference of 2.
    assert abs(best - 1 / (1 + np.exp(-2 * SLOPE))) < 1e-12
