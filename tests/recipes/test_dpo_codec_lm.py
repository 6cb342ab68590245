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
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    EncodecConfig,
    EncodecModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from apex_reward.files.tables import read_jsonl
from tests.support import tiny_model

REPOSITORY = Path(__file__).parents[2]


def run(output: Path, *arguments: str) -> dict:
    """The recipe's summary after a run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "recipes/dpo_codec_lm.py", "--output", str(output), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "summary.json").read_text())


@pytest.mark.slow
def test_fresh_generations_get_better(tmp_path):
    short = ["--candidates", "8", "--top-k", "2", "--fresh", "1"]
    summary = run(tmp_path, "--seed", "0", *short, "--warm-steps", "150")
    assert summary["reward_after"] > summary["reward_before"]
    assert summary["rise_in_standard_errors"] >= 3
    assert summary["held_out_accuracy"] > 0.6
    assert summary["settings"]["seed"] == 0

    history = read_jsonl(tmp_path / "history.jsonl")
    assert [row["step"] for row in history] == [0, 10, 20, 30]
    assert history[-1]["loss"] < history[1]["loss"] - 0.05
    assert history[-1]["rewards/margins"] > history[1]["rewards/margins"] > 0
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
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_models_come_from_folders(tmp_path):
    """Policy, codec and reward model as a user names them; weights are random."""
    policy, tokenizer = sound_model(codes=32)
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    settings = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 32}
    codec = EncodecModel(EncodecConfig(**settings, target_bandwidths=[0.375], num_lstm_layers=1))
    codec.save_pretrained(tmp_path / "codec")
    tiny_model().save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.txt").write_text("slow piano\nfast drums\nslow drums\nfast piano\n")
    summary = run(
        tmp_path / "out",
        *("--policy", str(tmp_path / "policy"), "--prompts", str(tmp_path / "prompts.txt")),
        *("--codec", str(tmp_path / "codec"), "--codebooks", "1", "--offset", "7"),
        *("--reward-model", str(tmp_path / "reward"), "--max-tokens", "6", "--candidates", "12"),
        *("--fresh", "2", "--epochs", "1", "--test-share", "0.25", "--batch-size", "8"),
    )
    pairs = read_jsonl(tmp_path / "out" / "pairs.jsonl")
    assert summary["held_out_pairs"] > 0
    assert len(pairs) == summary["train_pairs"] + summary["held_out_pairs"]
    words = pairs[0]["chosen_tokens"].split()
    assert len(words) <= 6
    assert all(word.startswith("<code") for word in words)
    dropped = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    # Completions with a token that is no code do not decode, so they have no reward.
    assert "no reward" in {row["reason"] for row in dropped}


def sound_model(codes: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    words = ["<pad>", "<eos>", "<unk>", "slow", "fast", "piano", "drums"]
    words += [f"<code{n}>" for n in range(codes)]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    return LlamaForCausalLM(config), fast
