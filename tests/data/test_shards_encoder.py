"""The encoder that extraction runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apex_reward.data.shards import load_encoder
from apex_reward.errors import CheckpointError
from tests.support import TINY_ENCODER, formula_weights, tiny_model, write_mert_folder

DEEP = {**TINY_ENCODER, "num_hidden_layers": 12}


def test_a_folder_in_mert_s_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mert_folder(tmp_path / "mert", DEEP)
    monkeypatch.chdir(tmp_path)
    model = load_encoder("mert")
    assert model.config.encoder_name == str(tmp_path / "mert"), "found from any folder"
    assert model.config.width == 32
    bias = {"encoder.layers.0.attention.q_proj.bias": (32,)}
    (name,) = bias
    expected = formula_weights(bias)[name]
    assert torch.equal(model.encoder.state_dict()[name], expected)
    assert next(model.predictor.parameters()).dtype == torch.float32


def test_a_folder_of_a_whole_model(tmp_path: Path) -> None:
    whole = tiny_model(segment_tail="drop")
    whole.save_pretrained(tmp_path / "model")
    model = load_encoder(tmp_path / "model")
    assert model.config.encoder_name == str(tmp_path / "model")
    assert model.config.segment_tail == "drop"
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value)


def test_the_embedded_model_keeps_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_encoder("apex-tiny").config.encoder_name == "apex-tiny"
    with pytest.raises(CheckpointError, match="gone does not exist"):
        load_encoder(tmp_path / "gone")
