"""transformers' own ways in: AutoModel, a feature extractor, a pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, pipeline

import apex_reward.model.pipeline
from apex_reward.audio import save_wav
from apex_reward.audio.resample import resample
from apex_reward.errors import UsageError
from apex_reward.model import ApexConfig, ApexFeatureExtractor, ApexReward, save_predictor
from tests.support import tiny_model

TASK = apex_reward.model.pipeline.TASK


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


def test_features_are_one_padded_batch(tmp_path: Path) -> None:
    extractor = ApexFeatureExtractor()
    stereo = torch.stack([song(0.5, 1), song(0.5, 2)])
    features = extractor([song(), {"array": stereo.numpy(), "sampling_rate": 12_000}], 24_000)
    assert features["lengths"].tolist() == [24_000, 24_000]
    torch.testing.assert_close(features["waveforms"][1], resample(stereo.mean(0), 12_000, 24_000))
    model = tiny_model()
    scores = model(**extractor([song(), song(0.5)], 24_000), sample_rate=extractor.sampling_rate)
    alone = model(song(0.5)[None], 24_000)
    torch.testing.assert_close(scores.stack()[1:], alone.stack(), atol=1e-4, rtol=1e-4)
    extractor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), ApexFeatureExtractor)
    with pytest.raises(UsageError, match="pass sampling_rate="):
        extractor(np.zeros(100))
    with pytest.raises(UsageError, match=r"shape \(1, 1, 9\)"):
        extractor(np.zeros((1, 1, 9)), 24_000)


def test_the_pipeline_gives_a_row_per_head(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    save_wav(tmp_path / "song.wav", song().numpy(), 24_000)
    expected = model(song()[None], 24_000).rows()[0]
    for named in (model, str(tmp_path / "model")):
        judge = pipeline(TASK, model=named)
        rows = judge(str(tmp_path / "song.wav"))
        assert [row["label"] for row in rows] == list(model.config.head_names)
        assert [row["score"] for row in rows] == pytest.approx(list(expected.values()), abs=1e-4)
        both = judge([song().numpy(), song(1.0, 3).numpy()], sampling_rate=24_000)
        assert both[0][0]["score"] == pytest.approx(rows[0]["score"], abs=1e-4)
