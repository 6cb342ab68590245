"""The reward recipes: the curve rises, and the files are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.files.tables import read_jsonl
from apex_reward.rewards.stacks.trl import ApexRewardFunction
from apex_reward.runs.settings import RewardSettings, build_reward
from tests.recipes.support import ROOT, mean, recipe_module, results, run
from tests.serve.running import start
from toys.notes import note_policy

RECIPE = ROOT / "recipes" / "grpo_codec_lm.py"

pytestmark = pytest.mark.slow


def test_grpo_raises_the_reward(tmp_path: Path) -> None:
    words = ["--max_steps", 14, "--holdout-reward", "apex-tiny", "--holdout-steps", 7]
    history, summary = run("grpo_codec_lm", tmp_path, *words)
    assert [row["step"] for row in history] == list(range(1, 15))
    assert mean(history[-4:], "reward") > mean(history[:4], "reward") + 0.1
    assert mean(history[-4:], "apex/guard_any") <= mean(history[:4], "apex/guard_any")
    assert all(row["apex/distance"] > 0 for row in history)
    assert all(0 <= row["apex/embedding_spread"] < 1 for row in history)
    assert [row["step"] for row in history if row["holdout/reward"] is not None] == [7, 14]
    assert [row["step"] for row in read_jsonl(tmp_path / "holdout.jsonl")] == [7, 14]
    assert summary["reward_before"] == pytest.approx(history[0]["reward"], abs=1e-4)
    assert summary["settings"]["max_steps"] == 14
    assert summary["turn"] is None
    assert load_audio(tmp_path / "audio" / "before_0.wav").duration > 0.2
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_grpo_in_two_processes_through_a_server_gives_the_rewards_of_one_with_the_model_inside(
    tmp_path: Path,
) -> None:
    inside = build_reward(RewardSettings(), loudness=-18.0, shortest=2.0, segment_seconds=4.0)
    inside.model.save_pretrained(tmp_path / "model")
    inside.sources[inside.model.name] = "model"
    inside.save(tmp_path / "reward.yaml")
    (tmp_path / "songs").mkdir()
    server, url = start(tmp_path)
    remote = yaml.safe_load((tmp_path / "reward.yaml").read_text())
    remote["models"] = url
    (tmp_path / "remote.yaml").write_text(yaml.safe_dump(remote))
    # accelerate 1.15 launches one process only where it is given --cpu.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    options = ["--output", str(tmp_path / "run"), "--max_steps", "2"]
    done = subprocess.run(
        [*launch, str(RECIPE), *options, "--reward", str(tmp_path / "remote.yaml")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    server.terminate()
    assert server.wait(timeout=30) in (0, -signal.SIGTERM)
    assert done.returncode == 0, done.stderr[-3000:]
    history, summary = results(tmp_path / "run")
    assert summary["processes"] == 2
    rows = read_jsonl(tmp_path / "run" / "completions.jsonl")
    assert len(rows) == 2 * 32
    policy = note_policy(seed=0, steps=0)
    function = ApexRewardFunction(Reward.load(tmp_path / "reward.yaml"), decode=policy.decode)
    for step in (0, 1):
        together = [row for row in rows if row["step"] == step]
        rewards = function(
            [row["prompt"] for row in together], [""] * 32, [row["ids"] for row in together]
        )
        assert rewards == pytest.approx([row["reward"] for row in together], abs=1e-5)
        assert history[step]["reward"] == pytest.approx(sum(rewards) / 32, abs=1e-5)
        assert len(set(rewards)) > 8


def test_ctrl_c_in_the_middle_keeps_a_checkpoint_to_go_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max_steps", 3, "--report_to", "tensorboard"]
    history = tmp_path / "history.jsonl.partial"

    def interrupt() -> None:
        while not history.exists() or len(history.read_text().splitlines()) < 1:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    recipe_module("grpo_codec_lm").main(["--output", str(tmp_path), *map(str, words)])
    said = capsys.readouterr().out
    assert results(tmp_path)[1]["interrupted"] is True
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert f"Go on with the same command and --resume_from_checkpoint {checkpoint}" in said
    assert int(checkpoint.name.removeprefix("checkpoint-")) < 3
    rows, summary = run("grpo_codec_lm", tmp_path, *words, "--resume_from_checkpoint", checkpoint)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert summary["interrupted"] is False
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_fewer_prompts_than_a_step_takes_are_refused(tmp_path: Path) -> None:
    """TRL would end without a step and without an error."""
    words = ["--output", tmp_path, "--num_generations", 2, "--per_device_train_batch_size", 96]
    with pytest.raises(SystemExit, match="40 prompts to train on are fewer than the 48 of a step"):
        recipe_module("grpo_codec_lm").main([*map(str, words)])
    assert not (tmp_path / "adapter").exists()
