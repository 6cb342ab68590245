"""Weight files: what is read from them and what is said of tensors that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apex_reward.errors import CheckpointError
from apex_reward.model.files import (
    check_tensors,
    hub_options,
    in_float32,
    local_path,
    wanted_files,
    weight_file,
)


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
