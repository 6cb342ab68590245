"""What a run starts from: the accelerator's trackers, and shards that name no encoder."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from apex_reward.errors import DataError, UsageError
from apex_reward.train.session import encoder_source, load_training_data, make_accelerator
from tests.support import tiny_model
from tests.train.shards_builder import write_shards


def test_a_named_encoder_stands_for_shards_that_name_none(tmp_path: Path) -> None:
    tiny_model(width=16).save_pretrained(tmp_path / "encoder")
    write_shards(tmp_path / "data", {"train": 6, "val": 4, "test": 4}, width=16)
    for file in (tmp_path / "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(DataError, match="expected 768"):
        load_training_data(tmp_path / "data", "full")
    data = load_training_data(tmp_path / "data", "full", encoder=str(tmp_path / "encoder"))
    assert data.source == encoder_source(str(tmp_path / "encoder"))
    assert data.source.model_config().encoder_name == str(tmp_path / "encoder")
    assert len(data.source.pooling_weight) == 4
    assert len(data["train"].audio_ids) == 6


def test_trackers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *_: [])
    with pytest.raises(UsageError, match="--report-to wandb,aim: not installed here"):
        make_accelerator("no", ["wandb", "aim"])
