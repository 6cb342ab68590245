"""transformers' `AutoModel` loads what was saved."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from apex_reward.model import ApexConfig, ApexReward, save_predictor
from tests.support import tiny_model


def song(seconds: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(round(24_000 * seconds), generator=generator) * 0.1


def test_auto_classes_find_a_saved_folder(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "whole")
    model.config.encoder_name = str(tmp_path / "whole")
    save_predictor(tmp_path / "part", model.config, model.predictor, model.pooling)
    expected = model(song()[None], 24_000).stack()
    for name in ("whole", "part"):
        assert isinstance(AutoConfig.from_pretrained(tmp_path / name), ApexConfig)
        loaded = AutoModel.from_pretrained(str(tmp_path / name))
        assert isinstance(loaded, ApexReward)
        torch.testing.assert_close(loaded(song()[None], 24_000).stack(), expected)
        loaded.save_pretrained(tmp_path / f"again-{name}")
