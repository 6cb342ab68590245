"""The training recipe run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apex_reward.files.tables import read_jsonl
from apex_reward.scoring import score_songs

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_songs_and_counts_become_a_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "recipes/train_apex.py", "--output", str(tmp_path), "--seed", "1"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["reward_after"] > 0.7
    assert abs(summary["reward_before"]) < 0.6
    history = read_jsonl(tmp_path / "history.jsonl")
    assert [row["step"] for row in history] == list(range(1, len(history) + 1))
    assert history[-1]["reward"] > history[0]["reward"] + 0.3
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    from apex_reward import ApexReward

    model = ApexReward.from_pretrained(tmp_path / "model")
    songs = [str(tmp_path / "audio" / name) for name in ("lowest.wav", "highest.wav")]
    low, high = score_songs(model, songs)
    assert high["score_likes"] > low["score_likes"] + 10
