"""Flow-GRPO as a run: files, an adapter that loads back, and a pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from peft import PeftModel
from transformers import T5Config, T5EncoderModel

from apex_reward.audio import load_audio
from apex_reward.demo.flow import toy_flow
from apex_reward.demo.musicgen import style_tokenizer
from tests.recipes.support import run
from tests.support import tiny_model


def test_a_short_run_and_its_adapter(tmp_path: Path) -> None:
    small = ("--per_device_train_batch_size", 6, "--num_generations", 3)
    history, summary = run("flow_grpo_audio", tmp_path, "--max_steps", 2, "--warm_steps", 5, *small)
    assert [row["step"] for row in history] == [1, 2]
    assert summary["reward_after"] == pytest.approx(history[1]["reward"], abs=1e-6)
    assert 0 < history[0]["kl"] < history[1]["kl"]
    assert load_audio(tmp_path / "audio" / "before_0.wav").duration == 4.0

    inputs = torch.randn(2, 16, 16), torch.tensor([0.5, 0.9]), torch.tensor([0, 3])
    flow = toy_flow(0, 5)
    with torch.no_grad():
        before = flow(*inputs)
        loaded = PeftModel.from_pretrained(flow, str(tmp_path / "adapter")).eval()
        assert float((loaded(*inputs) - before).abs().max()) > 1e-4
        with loaded.disable_adapter():
            torch.testing.assert_close(loaded(*inputs), before)


def small_pipeline() -> StableAudioPipeline:
    """Stable Audio's parts at a few numbers each, with random weights."""
    torch.manual_seed(0)
    text = T5EncoderModel(
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    transformer = StableAudioDiTModel(
        sample_size=400, in_channels=3, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        num_key_value_attention_heads=2, out_channels=3, cross_attention_dim=4,
        time_proj_dim=8, global_states_input_dim=8, cross_attention_input_dim=4,
    )  # fmt: skip
    vae = AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=3, audio_channels=2, channel_multiples=[2, 4], sampling_rate=4000,
    )  # fmt: skip
    return StableAudioPipeline(
        vae=vae, text_encoder=text, tokenizer=style_tokenizer(), transformer=transformer,
        projection_model=StableAudioProjectionModel(8, 4, 0, 32),
        scheduler=CosineDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction",
                                                    sigma_data=1.0, sigma_schedule="exponential"),
    )  # fmt: skip


def test_a_pipeline_of_diffusers(tmp_path: Path) -> None:
    small_pipeline().save_pretrained(tmp_path / "pipeline")
    tiny_model().save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.txt").write_text("low calm\nhigh lively\n")
    history, _ = run(
        "flow_grpo_audio", tmp_path / "run", "--pipeline", tmp_path / "pipeline",
        "--prompts", tmp_path / "prompts.txt", "--reward_model", tmp_path / "reward",
        "--audio_seconds", 0.2, "--sampler_steps", 3, "--max_steps", 2, "--num_generations", 2,
        "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2,
        "--guidance_scale", 2,
    )  # fmt: skip
    assert history[0]["kl"] < history[1]["kl"]
    assert all(row["grad_norm"] > 0 for row in history)
    transformer = small_pipeline().transformer
    loaded = PeftModel.from_pretrained(transformer, str(tmp_path / "run" / "adapter"))
    moved = [name for name, weight in loaded.named_parameters() if "lora_B" in name
             and float(weight.abs().max()) > 0]  # fmt: skip
    assert len(moved) == 8
