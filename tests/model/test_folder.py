"""Folders of our own: written whole, read exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.folder import check_unused, read_folder, read_model, write_folder

CONFIG = {"model_type": "ours", "width": 2}
TENSORS = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}


def build(config: dict) -> nn.Linear:
    return nn.Linear(config["width"], 1)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "model", CONFIG, {**TENSORS, "bias": TENSORS["bias"].half()})
    config, file, tensors = read_folder(tmp_path / "a" / "model", "ours")
    assert (config, file.name) == (CONFIG, "model.safetensors")
    assert tensors["bias"].dtype == torch.float16
    model = read_model(tmp_path / "a" / "model", "ours", build)
    assert model(torch.tensor([[3.0, 4.0]])).tolist() == [[11.5]]
    assert model.bias.dtype == torch.float32
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "model"]


def test_another_model_replaces_both_files_and_leaves_the_rest(tmp_path: Path) -> None:
    write_folder(tmp_path, CONFIG, TENSORS)
    (tmp_path / "README.md").write_text("mine")
    turned = TENSORS["weight"].flip(1).T.contiguous().T
    write_folder(tmp_path, {**CONFIG, "note": 1}, {**TENSORS, "weight": turned})
    assert json.loads((tmp_path / "config.json").read_text()) == {**CONFIG, "note": 1}
    assert load_file(tmp_path / "model.safetensors")["weight"].tolist() == [[2.0, 1.0]]
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"width": 2}, TENSORS, "describes a None; expected 'ours'"),
        ({"model_type": "theirs"}, TENSORS, "describes a 'theirs'; expected 'ours'"),
        ({"model_type": "ours"}, TENSORS, "lacks or adds a setting: 'width'"),
        ({**CONFIG, "width": 3}, TENSORS, r"weight has shape \(1, 2\), expected \(1, 3\)"),
        (CONFIG, {"weight": TENSORS["weight"]}, "missing: bias"),
    ],
)
def test_folders_that_do_not_fit(
    tmp_path: Path, config: dict, tensors: dict[str, torch.Tensor], message: str
) -> None:
    write_folder(tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match=message):
        read_model(tmp_path, "ours", build)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    assert check_unused(tmp_path / "new") == tmp_path / "new"
    assert check_unused(str(tmp_path)) == tmp_path
    (tmp_path / "file").touch()
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="is there already; name a new or empty folder"):
            check_unused(used)
