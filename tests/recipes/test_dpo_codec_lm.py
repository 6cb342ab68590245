"""The DPO recipe, short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import EncodecConfig, EncodecModel

from apex_reward.files.tables import read_jsonl
from tests.recipes.support import run, sound_model
from tests.support import tiny_model


@pytest.mark.slow
def test_fresh_generations_get_better(tmp_path: Path) -> None:
    short = ["--candidates", 8, "--top_k", 2, "--fresh", 1, "--warm_steps", 150]
    history, summary = run("dpo_codec_lm", tmp_path, "--seed", 0, *short)
    assert summary["reward_after"] > summary["reward_before"]
    assert summary["rise_in_standard_errors"] >= 3
    assert summary["held_out_accuracy"] > 0.6
    assert summary["settings"]["seed"] == 0

    assert [row["step"] for row in history] == [0, 10, 20, 30]
    assert history[-1]["loss"] < history[1]["loss"] - 0.05
    assert history[-1]["rewards/margins"] > history[1]["rewards/margins"] > 0
    assert all(row["apex/distance"] > 0 for row in history)
    assert summary["decoded_after"] > 0.8

    pairs = read_jsonl(tmp_path / "pairs.jsonl")
    sides = [{pair["prompt"] for pair in pairs if pair["split"] == s} for s in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(pairs) == summary["train_pairs"] + summary["held_out_pairs"]
    assert all(pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs)
    for name in ("before", "after"):
        songs = sorted((tmp_path / "audio").glob(f"{name}_*.wav"))
        assert songs
        assert all(np.abs(soundfile.read(song)[0]).max() > 0.01 for song in songs)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_models_come_from_folders(tmp_path: Path) -> None:
    """Policy, codec and reward model as a user names them; weights are random."""
    policy, tokenizer = sound_model(codes=32)
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    settings = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 32}
    codec = EncodecModel(EncodecConfig(**settings, target_bandwidths=[0.375], num_lstm_layers=1))
    codec.save_pretrained(tmp_path / "codec")
    tiny_model().save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.txt").write_text("slow piano\nfast drums\nslow drums\nfast piano\n")
    (tmp_path / "run.yaml").write_text(
        f"policy: {tmp_path}/policy\nprompts: {tmp_path}/prompts.txt\ncodec: {tmp_path}/codec\n"
        f"codebooks: 1\noffset: 7\nreward_model: {tmp_path}/reward\nmax_new_tokens: 6\n"
        "test_share: 0.25\nnum_train_epochs: 1\nper_device_train_batch_size: 8\n"
    )
    _, summary = run("dpo_codec_lm", tmp_path / "out", "--config", tmp_path / "run.yaml")
    pairs = read_jsonl(tmp_path / "out" / "pairs.jsonl")
    assert summary["held_out_pairs"] > 0
    assert len(pairs) == summary["train_pairs"] + summary["held_out_pairs"]
    words = pairs[0]["chosen_tokens"].split()
    assert len(words) <= 6
    assert all(word.startswith("<code") for word in words)
    dropped = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    # Completions with a token that is no code do not decode, so they have no reward.
    assert "no reward" in {row["reason"] for row in dropped}
