"""The DPO recipe run as a user runs it, with a short seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from apex_reward.tables import read_jsonl

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_fresh_generations_get_better(tmp_path):
    command = [sys.executable, "recipes/dpo_codec_lm.py", "--output", str(tmp_path), "--seed", "0"]
    short = ["--candidates", "6", "--top-k", "2", "--epochs", "2", "--fresh", "1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, *short, "--warm-steps", "150"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["reward_after"] > summary["reward_before"]
    assert summary["rise_in_standard_errors"] >= 3
    assert summary["held_out_accuracy"] > 0.6
    assert summary["settings"]["seed"] == 0

    history = read_jsonl(tmp_path / "history.jsonl")
    assert [row["step"] for row in history] == [0, 5, 10, 15, 20]
    # DPO starts at log 2 and learns to tell its pairs apart.
    assert history[1]["loss"] == pytest.approx(np.log(2), abs=0.02)
    assert history[-1]["loss"] < history[1]["loss"] - 0.02
    assert history[-1]["rewards/accuracies"] > 0.6

    pairs = read_jsonl(tmp_path / "pairs.jsonl")
    sides = [{pair["prompt"] for pair in pairs if pair["split"] == s} for s in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(pairs) == summary["train_pairs"] + summary["held_out_pairs"]
    assert all(pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs)
    for name in ("before", "after"):
        songs = sorted((tmp_path / "audio").glob(f"{name}_*.wav"))
        assert songs
        assert all(np.abs(soundfile.read(song)[0]).max() > 0.01 for song in songs)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
