"""Policies from folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import EncodecConfig, EncodecModel

from apex_reward.errors import UsageError
from apex_reward.runs.policy import PolicySettings, load_policy
from tests.recipes.support import sound_model


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
    policy = load_policy(named)
    assert policy.prompts == ["slow piano", "fast drums"]
    assert policy.decode.sample_rate == 24_000
    (song,) = policy.decode([[7, 8, 38]])
    assert song.shape == (1, 3 * 320)
    with pytest.raises(UsageError, match="--policy needs --codec"):
        load_policy(PolicySettings(policy="somewhere"))
