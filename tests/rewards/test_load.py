"""The one way in: which model a name means, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.utils import logging

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.rewards.load import (
    default_workers,
    load_reward_model,
    usable_device,
    without_bars,
)
from tests.support import Loudness, tiny_model


def test_reward_models_are_named_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_rewards", SimpleNamespace(Loudness=Loudness, Wrong=dict))
    assert load_reward_model("my_rewards:Loudness").name == "loudness"
    with pytest.raises(UsageError, match="expected package.module:Class"):
        load_reward_model("my_rewards:Nothing")
    with pytest.raises(UsageError, match="expected package.module:Class"):
        load_reward_model("not_there_at_all:Model")
    with pytest.raises(UsageError, match="lacks name, heads"):
        load_reward_model("my_rewards:Wrong")
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    with pytest.raises(UsageError, match=r"pip install 'apex-reward\[audiobox\]'"):
        load_reward_model("audiobox")


def test_a_folder_of_ours_with_its_options(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    model = load_reward_model(tmp_path / "model", segment_tail="drop", device="cpu")
    assert model.config.segment_tail == "drop"
    plain = load_reward_model(str(tmp_path / "model"), device="cpu")
    assert plain.config.segment_tail == tiny_model().config.segment_tail
    half = load_reward_model(tmp_path / "model", dtype="bfloat16", device="cpu")
    assert next(half.encoder.parameters()).dtype == torch.bfloat16
    assert next(half.predictor.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("apex-tiny", {"dtype": "int8"}, "dtype is 'int8'; expected one of auto, float32"),
        ("apex-tiny", {"device": "abacus"}, "device 'abacus' cannot be used here"),
        ("clap", {"encoder": "x"}, "--encoder is for APEX models; clap takes none"),
        ("http://127.0.0.1:9", {"segment_tail": "pad"}, "--segment-tail is for APEX models"),
        ("mine:one", {"encoder": "x", "segment_tail": "pad"}, "--encoder and --segment-tail is"),
        (
            "mine:one",
            {"dtype": "float16"},
            "loudness has no number type to choose",
        ),
        (
            "mine:module",
            {"dtype": "float16"},
            "type to choose; leave out --dtype float16",
        ),
        ("audiobox:folder", {}, "audiobox takes no folder; name it alone"),
    ],
)
def test_options_that_a_model_does_not_take(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, str], message: str
) -> None:
    class Module(torch.nn.Module, Loudness):
        """On a device, and without a number type to choose."""

    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(one=Loudness, module=Module))
    with pytest.raises(UsageError, match=message):
        load_reward_model(name, **options)


def test_a_folder_says_which_model_it_holds(tmp_path: Path) -> None:
    for content in (json.dumps({"model_type": "apex_reward_songeval"}), "[]", "{half"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError) as error:
            load_reward_model(tmp_path)
        assert str(tmp_path) in str(error.value)
        assert ("holds no weights" in str(error.value)) == content.startswith('{"model_type')


def test_the_machine_decides_where_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert usable_device(None).type == kind
    assert usable_device("cpu") == torch.device("cpu")
    for cores, workers in ((1, 1), (2, 1), (5, 4), (9, 8), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert default_workers() == workers


def test_bars_come_back() -> None:
    logging.enable_progress_bar()
    with without_bars():
        assert not logging.is_progress_bar_enabled()
        with without_bars():
            pass
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
