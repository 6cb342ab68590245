"""The policies of recipes: the toy, models from folders, and sampling from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from apex_reward.errors import UsageError
from apex_reward.runs.policy import (
    PolicySettings,
    load_policy,
    sample_songs,
    sample_tokens,
)
from tests.recipes.support import sound_model


def test_sampling_is_repeated_by_its_seed_and_leaves_the_rest_alone() -> None:
    policy = load_policy(PolicySettings(), seed=0, steps=3)
    prompts = ["low calm sea", "high lively city"]
    policy.model.train()
    state = torch.random.get_rng_state()
    first = sample_tokens(policy, prompts, 3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert policy.model.training
    assert first == sample_tokens(policy, prompts, 3, seed=1)
    assert first != sample_tokens(policy, prompts, 3, seed=2)
    assert len(first) == 6
    end = policy.tokenizer.eos_token_id
    assert all(len(ids) <= 16 and end not in ids for ids in first)
    assert len(sample_tokens(policy, prompts[:1], seed=1, max_new_tokens=5)[0]) <= 5


def test_songs_are_what_the_decoder_makes_of_the_tokens() -> None:
    policy = load_policy(PolicySettings(), seed=0, steps=20)
    tokens = sample_tokens(policy, ["low calm sea"], 4, seed=1)
    songs = sample_songs(policy, ["low calm sea"], 4, seed=1)
    assert any(song is not None for song in songs)
    for song, expected in zip(songs, policy.decode(tokens), strict=True):
        assert (song is None) == (expected is None)
        assert song is None or torch.equal(song, expected)


def test_a_policy_and_its_codec_come_from_folders(tmp_path: Path) -> None:
    model, tokenizer = sound_model(codes=32)
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    settings = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 32}
    codec = EncodecModel(EncodecConfig(**settings, target_bandwidths=[0.375], num_lstm_layers=1))
    codec.save_pretrained(tmp_path / "codec")
    (tmp_path / "prompts.txt").write_text("slow piano\nfast drums\n")
    named = PolicySettings(
        str(tmp_path / "policy"), str(tmp_path / "prompts.txt"), str(tmp_path / "codec"),
        codebooks=1, offset=7,
    )  # fmt: skip
    policy = load_policy(named, seed=0)
    assert policy.prompts == ["slow piano", "fast drums"]
    assert policy.decode.sample_rate == 24_000
    (song,) = policy.decode([[7, 8, 38]])
    assert song.shape == (1, 3 * 320)
    with pytest.raises(UsageError, match="--policy needs --codec"):
        load_policy(PolicySettings(policy="somewhere"), seed=0)
