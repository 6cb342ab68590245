"""Flow-GRPO as a run: files, an adapter that loads back, and a pipeline of diffusers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from apex_reward.audio import load_audio
from tests.pipelines import BUILDERS, small_pipeline
from tests.recipes.support import run
from tests.support import tiny_model
from toys.melodies import CONTROLS, FRAMES, MelodyFlow


def test_a_short_run_and_its_adapter(tmp_path: Path) -> None:
    small = ("--per_device_train_batch_size", 6, "--num_generations", 3)
    history, summary = run("flow_grpo_audio", tmp_path, "--max_steps", 2, "--warm_steps", 5, *small)
    assert [row["step"] for row in history] == [1, 2]
    assert summary["reward_after"] == pytest.approx(history[1]["reward"], abs=1e-6)
    assert 0 < history[0]["kl"] < history[1]["kl"]
    assert load_audio(tmp_path / "audio" / "before_0.wav").duration == 4.0

    flow = MelodyFlow(seed=0, fit_steps=5)
    inputs = (
        torch.randn(2, CONTROLS, FRAMES),
        torch.tensor([0.5, 0.9]),
        flow.condition(["0 1", "3 2"]),
    )
    with torch.no_grad():
        before = flow.velocity(*inputs)
        loaded = PeftModel.from_pretrained(flow, str(tmp_path / "adapter")).eval()
        assert float((flow.velocity(*inputs) - before).abs().max()) > 1e-4
        with loaded.disable_adapter():
            torch.testing.assert_close(flow.velocity(*inputs), before)


@pytest.mark.parametrize("kind", BUILDERS)
def test_pipelines_of_diffusers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_pipeline(kind).save_pretrained(tmp_path / "pipeline")
    tiny_model().save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.txt").write_text("low calm\nhigh lively\n")
    history, _ = run(
        "flow_grpo_audio", tmp_path / "run", "--pipeline", tmp_path / "pipeline",
        "--prompts", tmp_path / "prompts.txt", "--reward_model", tmp_path / "reward",
        "--audio_seconds", 0.2, "--sampler_steps", 3, "--max_steps", 2, "--num_generations", 2,
        "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2,
        *(() if kind == "AceStepPipeline" else ("--guidance_scale", 2)),
    )  # fmt: skip
    assert history[0]["kl"] < history[1]["kl"]
    assert all(row["grad_norm"] > 0 for row in history)
    said = re.search(r"songs of 0.2 s at 4000 Hz.*adapters on (\d+)%", capsys.readouterr().out)
    assert said is not None
    assert int(said.group(1)) >= 50
    for name in ("before_0", "after_0"):
        song = load_audio(tmp_path / "run" / "audio" / f"{name}.wav")
        assert song.duration == pytest.approx(0.2, abs=0.01)
    loaded = PeftModel.from_pretrained(
        small_pipeline(kind).transformer, str(tmp_path / "run" / "adapter")
    )
    moved = [float(w.abs().max()) > 0 for name, w in loaded.named_parameters() if "lora_B" in name]
    assert len(moved) >= 4
    assert all(moved)
