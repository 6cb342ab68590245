"""GRPO on MusicGen: exact log-probabilities under the delay, a run, an adapter that loads back."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from apex_reward.audio import load_audio
from tests.recipes.support import recipe_module, run
from tests.support import tiny_model
from toys.chords import style_tokenizer, toy_musicgen

TEXT = {"vocab_size": 8, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
CODEC = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 16,
         "num_lstm_layers": 1, "target_bandwidths": [1.2], "sampling_rate": 24_000}  # fmt: skip


def small_musicgen(channels: int = 1) -> MusicgenForConditionalGeneration:
    """Random weights, four codebooks, no dropout."""
    torch.manual_seed(0)
    decoder = MusicgenDecoderConfig(
        vocab_size=16, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        num_codebooks=4, max_position_embeddings=64, audio_channels=channels, dropout=0.0,
        pad_token_id=16, bos_token_id=16, initializer_factor=0.5,
    )  # fmt: skip
    parts = {"text_encoder": T5Config(**TEXT), "audio_encoder": EncodecConfig(**CODEC)}
    return MusicgenForConditionalGeneration(MusicgenConfig(**parts, decoder=decoder)).eval()


def policy_of(musicgen: MusicgenForConditionalGeneration) -> PeftModel:
    """With an adapter that changes something."""
    lora = LoraConfig(r=2, target_modules=r"decoder\.model.*\.q_proj", init_lora_weights=False)
    return get_peft_model(musicgen, lora).eval()


def rollout_of(policy: PeftModel, recipe: Any, guidance: float) -> Any:
    texts = ["low calm", "low calm", "high", "high"]
    return recipe.Rollout(
        policy, style_tokenizer()(texts, padding=True, return_tensors="pt"), 5, guidance
    )


@pytest.mark.parametrize(("channels", "guidance"), [(1, 1.0), (1, 3.0), (2, 1.0)])
def test_log_probabilities_are_those_of_one_code_after_the_other(
    channels: int, guidance: float
) -> None:
    recipe = recipe_module("grpo_musicgen")
    policy = policy_of(small_musicgen(channels))
    rollout = rollout_of(policy, recipe, guidance)
    assert rollout.codes.shape == (4, 4, 5)
    assert rollout.songs.shape[:2] == (4, channels)
    with torch.no_grad():
        found = recipe.log_probabilities(policy, rollout, guidance)
        expected = slow_log_probabilities(policy, rollout, channels, guidance)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    parts = [recipe.log_probabilities(policy, rollout.part(torch.tensor([i])), guidance)
             for i in range(4)]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), found, atol=1e-5, rtol=0)


def slow_log_probabilities(
    policy: PeftModel, rollout: Any, channels: int, guidance: float
) -> torch.Tensor:
    """Song by song and code by code, each from all that is before it in the delayed grid."""
    decoder = policy.get_base_model().decoder
    project = policy.get_base_model().enc_to_dec_proj if hasattr(
        policy.get_base_model(), "enc_to_dec_proj") else (lambda x: x)  # fmt: skip
    songs, books, frames = rollout.codes.shape
    found = torch.empty(songs, books, frames)
    for song in range(songs):
        mask = rollout.mask[song : song + 1]
        states = project(rollout.states[song : song + 1]) * mask[..., None]
        for book in range(books):
            for frame in range(frames):
                now = frame + book // channels
                grid = torch.full((books, now + 1), 16)
                for k in range(books):
                    for f in range(frames):
                        if f + k // channels + 1 <= now:
                            grid[k, f + k // channels + 1] = rollout.codes[song, k, f]
                logits = decoder(
                    grid, encoder_hidden_states=states, encoder_attention_mask=mask
                ).logits[book, -1]
                if guidance > 1:
                    free = decoder(
                        grid,
                        encoder_hidden_states=torch.zeros_like(states),
                        encoder_attention_mask=torch.zeros_like(mask),
                    ).logits[book, -1]
                    logits = free + guidance * (logits - free)
                code = rollout.codes[song, book, frame]
                found[song, book, frame] = logits.log_softmax(-1)[code]
    return found


def test_codes_are_drawn_as_often_as_their_probability() -> None:
    recipe = recipe_module("grpo_musicgen")
    policy = policy_of(small_musicgen())
    states, mask = torch.randn(1, 3, 16).expand(4000, -1, -1), torch.ones(4000, 3).long()
    torch.manual_seed(1)
    codes = recipe.sample(policy, states, mask, 4, 1.0)
    rollout = SimpleNamespace(states=states[:1], mask=mask[:1], codes=codes[:1])
    for code in range(0, 16, 5):
        rollout.codes = torch.full((1, 4, 4), code)
        with torch.no_grad():
            expected = recipe.log_probabilities(policy, rollout, 1.0)[0, 0, 0].exp()
        share = (codes[:, 0, 0] == code).float().mean()
        assert float(share) == pytest.approx(float(expected), abs=0.02)


def test_the_adapter_leaves_the_output_layers_out() -> None:
    """Attention and feed-forward layers of the decoder: 8 + 2 in each layer."""
    lora = LoraConfig(r=2, target_modules=recipe_module("grpo_musicgen").LAYERS)
    policy = get_peft_model(small_musicgen(), lora)
    adapted = [name for name, _ in policy.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 10
    assert all(".decoder.layers." in name for name in adapted)
    assert not any("lm_heads" in name or "text_encoder" in name for name in adapted)


def test_a_short_run_and_its_adapter(tmp_path: Path) -> None:
    small = ("--per_device_train_batch_size", 4, "--num_generations", 4)
    history, summary = run("grpo_musicgen", tmp_path, "--max_steps", 2, "--warm_steps", 4, *small)
    assert [row["step"] for row in history] == [1, 2]
    assert summary["reward_before"] == pytest.approx(history[0]["reward"], abs=1e-6)
    assert summary["reward_std_before"] > 0
    assert summary["demonstration"] is True
    assert history[0]["kl"] < history[1]["kl"] < 1
    assert load_audio(tmp_path / "audio" / "after_3.wav").duration == 4.0

    musicgen, tokenizer = toy_musicgen(0, 4)
    tokens = tokenizer(["low calm"], return_tensors="pt", return_token_type_ids=False)
    ids = torch.full((4, 1), 16)
    with torch.no_grad():
        before = musicgen(**tokens, decoder_input_ids=ids).logits
        loaded = PeftModel.from_pretrained(musicgen, str(tmp_path / "adapter")).eval()
        after = loaded(**tokens, decoder_input_ids=ids).logits
        with loaded.disable_adapter():
            torch.testing.assert_close(loaded(**tokens, decoder_input_ids=ids).logits, before)
    assert float((after - before).abs().max()) > 1e-4


def test_a_model_of_a_folder_with_guidance(tmp_path: Path) -> None:
    small_musicgen(2).save_pretrained(tmp_path / "model")
    style_tokenizer().save_pretrained(tmp_path / "model")
    tiny_model().save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.txt").write_text("low calm\nhigh lively\n")
    history, _ = run(
        "grpo_musicgen", tmp_path / "run", "--policy", tmp_path / "model",
        "--prompts", tmp_path / "prompts.txt", "--audio_seconds", 0.2, "--max_steps", 1,
        "--num_generations", 3, "--per_device_train_batch_size", 3,
        "--gradient_accumulation_steps", 2, "--guidance_scale", 2,
        "--reward_model", tmp_path / "reward",
    )  # fmt: skip
    assert len(history) == 1
    song = load_audio(tmp_path / "run" / "audio" / "before_0.wav").samples
    assert song.shape == (2, 15 * 320)


def test_drift_is_zero_only_where_nothing_moved() -> None:
    recipe = recipe_module("grpo_musicgen")
    found = recipe.drift(torch.tensor([0.0, math.log(2), -1.0]), torch.tensor([0.0, 0.0, -1.0]))
    assert found.tolist() == pytest.approx([0.0, 0.5 - math.log(0.5) - 1, 0.0], abs=1e-6)
