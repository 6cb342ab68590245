"""Reward back-propagation and best-of-N: the curve rises, and the files are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_reward.audio import load_audio
from apex_reward.files.tables import read_jsonl
from tests.recipes.support import mean, run

pytestmark = pytest.mark.slow


def test_backpropagation_raises_the_reward_of_unseen_prompts(tmp_path: Path) -> None:
    words = ["--max_steps", 8, "--holdout-steps", 8, "--save_steps", 7]
    history, summary = run("reward_backprop", tmp_path, *words)
    assert summary["reward_after"] > summary["reward_before"] + 0.05
    assert summary["reward_after"] == pytest.approx(history[-1]["held_out"], abs=1e-4)
    assert summary["guard_rate_before"] == 0
    # Climbing without guards raises the steady noise up to the guard's limit: some songs trip it.
    assert summary["guard_rate_after"] <= 0.6
    assert all(row["grad_norm"] > 0 and row["guard_price"] == 0 for row in history)
    assert history[-1]["apex/distance"] == pytest.approx(summary["distance_after"], rel=1e-3)
    assert [row["step"] for row in history if row["held_out"] is not None] == [8]
    before, after = (load_audio(tmp_path / "audio" / f"{n}_0.wav") for n in ("before", "after"))
    assert before.duration == after.duration == 4.0
    assert abs(before.samples - after.samples).max() > 0.01
    # From a checkpoint the run goes on as if it had not stopped.
    again = ["--resume_from_checkpoint", tmp_path / "checkpoint-7", "--max_steps", 8]
    resumed, _ = run("reward_backprop", tmp_path, *again, "--holdout-steps", 8)
    assert [row["step"] for row in resumed] == list(range(1, 9))
    assert resumed[-1]["reward"] == pytest.approx(history[-1]["reward"], abs=1e-5)
    assert resumed[-1]["held_out"] == pytest.approx(history[-1]["held_out"], abs=1e-4)


def test_best_of_more_is_better(tmp_path: Path) -> None:
    history, summary = run("best_of_n", tmp_path, "--num_generations", 4)
    assert [row["step"] for row in history] == [1, 2, 4]
    rewards = [row["reward"] for row in history]
    assert rewards == sorted(rewards)
    rows = read_jsonl(tmp_path / "candidates.jsonl")
    assert len(rows) == 40
    assert rewards[0] == pytest.approx(mean(rows, "reward"), abs=0.08)
    best = [max(row["reward"] for row in rows if row["prompt"] == p) for p in range(10)]
    assert rewards[-1] == pytest.approx(sum(best) / 10, abs=1e-6)
    assert history[-1]["kl_bound"] == pytest.approx(0.6363, abs=1e-4)
    assert history[-1]["embedding_spread"] == pytest.approx(0, abs=1e-6)  # one song of each prompt
    assert history[0]["embedding_spread"] > 0
    assert summary["distance_after"] < summary["distance_before"]
