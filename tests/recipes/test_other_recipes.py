"""The reward recipes run as scripts: the curve rises, and the files are there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from apex_reward.audio import load_audio
from apex_reward.files.tables import read_jsonl

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(recipe: str, output: Path, *options: object, launch: tuple[str, ...] = ()) -> Any:
    """Run a recipe as a user does; its history and summary."""
    command = [sys.executable, *launch, str(ROOT / "recipes" / recipe), "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, options)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((output / "summary.json").read_text())
    assert (output / "curves.png").stat().st_size > 5_000
    return read_jsonl(output / "history.jsonl"), summary


def recipe_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mean(rows: list[dict[str, Any]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def test_backpropagation_raises_the_reward_of_unseen_prompts(tmp_path: Path) -> None:
    history, summary = run("reward_backprop.py", tmp_path, "--steps", 8, "--judge-every", 4)
    assert summary["reward_after"] > summary["reward_before"] + 0.05
    assert summary["reward_after"] == pytest.approx(history[-1]["held_out"], abs=1e-4)
    assert summary["guard_rate_before"] == 0
    # Climbing without guards raises the steady noise up to the guard's limit: some songs trip it.
    assert summary["guard_rate_after"] <= 0.5
    assert all(row["grad_norm"] > 0 for row in history)
    before, after = (load_audio(tmp_path / "audio" / f"{n}_0.wav") for n in ("before", "after"))
    assert before.duration == after.duration == 4.0
    assert abs(before.samples - after.samples).max() > 0.01


def test_best_of_more_is_better(tmp_path: Path) -> None:
    history, summary = run("best_of_n.py", tmp_path, "--largest", 4)
    assert [row["step"] for row in history] == [1, 2, 4]
    rewards = [row["reward"] for row in history]
    assert rewards == sorted(rewards)
    rows = read_jsonl(tmp_path / "candidates.jsonl")
    assert len(rows) == 40
    assert rewards[0] == pytest.approx(mean(rows, "reward"), abs=0.08)
    best = [max(row["reward"] for row in rows if row["prompt"] == p) for p in range(10)]
    assert rewards[-1] == pytest.approx(sum(best) / 10, abs=1e-6)
    assert history[-1]["kl_bound"] == pytest.approx(0.6363, abs=1e-4)
    assert summary["distance_after"] < summary["distance_before"]
