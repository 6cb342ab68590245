"""Weight files: reading them, and the errors for tensors that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.files import (
    check_tensors,
    check_unused,
    hub_options,
    in_float32,
    local_path,
    read_folder,
    read_model,
    wanted_files,
    weight_file,
    write_folder,
)

CONFIG = {"model_type": "ours", "width": 2}
TENSORS = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}


def test_floats_become_float32_and_counts_stay() -> None:
    found = in_float32({"half": torch.tensor([1.5]).half(), "count": torch.tensor(2**30 + 1)})
    assert found["half"].dtype == torch.float32
    assert found["half"].tolist() == [1.5]
    assert found["count"].dtype == torch.int64
    assert int(found["count"]) == 2**30 + 1


def test_every_tensor_that_does_not_fit_is_listed() -> None:
    expected = {name: torch.zeros(2) for name in ("a", "b", "c", "d")} | {"n": torch.tensor(0)}
    found = {
        "b": torch.zeros(2, 1), "c": [0.0, 0.0], "d": torch.tensor([0.0, torch.nan]),
        "e": torch.zeros(2), "n": torch.tensor(5),
    }  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        check_tensors(Path("x.pt"), found, expected)
    assert str(error.value).splitlines() == [
        "x.pt does not fit the model:",
        "  missing: a",
        "  not expected: e",
        "  b has shape (2, 1), expected (2,)",
        "  c is a list, not a tensor",
        "  d holds NaN or infinite values",
    ]
    check_tensors(Path("x.pt"), dict(expected), expected)


def test_the_plain_weights_of_a_folder_come_first(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights; expected one of model\.safe"):
        weight_file(tmp_path)
    for name in ("best_model.pt", "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
        assert weight_file(tmp_path) == tmp_path / name
    assert weight_file(tmp_path / "best_model.pt") == tmp_path / "best_model.pt"


def test_options_of_the_hub_are_taken_out() -> None:
    options = {"revision": "main", "task": "full", "token": None}
    assert hub_options(options) == {"revision": "main", "token": None}
    assert options == {"task": "full"}


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


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (["best_model.pt", "model_state_dict.pt"], ["model_state_dict.pt"]),
        (
            ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "x.bin"],
            ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"],
        ),
    ],
)
def test_one_form_of_the_weights_is_fetched(weights: list[str], wanted: list[str]) -> None:
    names = ["README.md", "config.json", *weights, "clap/config.json", "clap/vocab.json"]
    names += ["clap/model.safetensors", "clap/pytorch_model.bin", "other/model.safetensors"]
    assert sorted(wanted_files(names)) == sorted(
        ["config.json", *wanted, "clap/config.json", "clap/vocab.json", "clap/model.safetensors"]
    )


def test_a_download_takes_the_hub_s_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def listing(hub_id: str, **options: object) -> list[str]:
        asked.append((hub_id, options))
        if hub_id == "no/network":
            raise OSError("no network")
        return ["config.json", "model.safetensors", "pytorch_model.bin"]

    def snapshot(hub_id: str, **options: object) -> str:
        asked.append((hub_id, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.list_repo_files", listing)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    options = {"revision": "v1", "token": "t", "cache_dir": "c"}
    assert local_path("a/model", **options) == tmp_path
    files = ["config.json", "model.safetensors"]
    assert asked == [
        ("a/model", {"revision": "v1", "token": "t"}),
        ("a/model", {**options, "allow_patterns": files}),
    ]
    local_path("no/network")
    assert asked[-1][1]["local_files_only"] is True
    local_path("a/model", local_files_only=True)  # the cache alone: nothing is listed
    assert [name for name, _ in asked[2:]] == ["no/network", "no/network", "a/model"]
