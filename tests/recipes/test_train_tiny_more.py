"""The recipes of apex-tiny's second training and of apex-tiny-fast: their short modes repeat."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from apex_reward import ApexReward
from apex_reward.files.tables import read_jsonl
from tests.recipes.test_train_tiny import load_recipe
from toys.junk import JUNK

SUMMARY = {"reward_before", "reward_after", "reward_std_before", "seconds", "settings", "model"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """apex-tiny with segments of a second, which makes short sounds cheap."""
    folder = tmp_path_factory.mktemp("start") / "tiny"
    ApexReward.from_pretrained("apex-tiny", segment_seconds=1.0).save_pretrained(folder)
    return folder


def run(name: str, output: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> Path:
    arguments = [name, "--output", str(output), "--short", "--seed", "3", *map(str, options)]
    monkeypatch.setattr(sys, "argv", arguments)
    threads = torch.get_num_threads()
    load_recipe(name).main()
    torch.set_num_threads(threads)
    assert set(json.loads((output / "summary.json").read_text())) >= SUMMARY
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    return output


def test_junk_is_taught_to_the_members_alone(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        run("train_tiny_junk", tmp_path / n, monkeypatch, "--start", start) for n in "ab"
    )
    assert len(read_jsonl(first / "history.jsonl")) == 8 * 3
    assert len(list(first.glob("*.wav"))) == len(JUNK)
    weights = "apex_tiny/model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    before, after = (
        ApexReward.from_pretrained(folder).state_dict() for folder in (start, first / "apex_tiny")
    )
    changed = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"predictor"}
    # The members learn with the batch statistics that they have.
    assert all(before[name].equal(after[name]) for name in before if "running_" in name)


def test_a_student_of_the_demonstration_model_is_an_ensemble(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        run("train_tiny_fast", tmp_path / n, monkeypatch, "--teacher", start) for n in "ab"
    )
    weights = "apex_tiny_fast/model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    student = ApexReward.from_pretrained(first / "apex_tiny_fast")
    assert (student.members, student.config.student, student.config.demonstration) == (
        8,
        True,
        True,
    )
    assert student.heads == ApexReward.from_pretrained(start).heads
