"""A synthetic data set and an accelerator, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from apex_reward.train.shards import Data, load_data, split_folders
from tests.train.shards_builder import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set with layer embeddings and aesthetic labels."""
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, {"train": 160, "val": 50, "test": 70}, width=16)


@pytest.fixture(scope="session")
def data(shards: Path) -> Data:
    return load_data(split_folders(shards), "full")


@pytest.fixture
def accelerator() -> Accelerator:
    torch.set_num_threads(1)
    AcceleratorState._reset_state()  # another test's precision
    return Accelerator(cpu=True)
