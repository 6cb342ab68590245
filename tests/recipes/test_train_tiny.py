"""The recipe of apex-tiny: its short mode runs, twice the same; a longer one learns."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from apex_reward import ApexReward
from apex_reward.demo import make_song
from apex_reward.files.tables import read_jsonl, read_table

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("train_tiny")


def load_recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_short(recipe: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Path:
    arguments = ["train_tiny.py", "--output", str(folder), "--seed", str(seed), "--short"]
    monkeypatch.setattr(sys, "argv", arguments)
    threads = torch.get_num_threads()
    recipe.main()
    torch.set_num_threads(threads)
    return folder


@pytest.mark.slow
def test_short_mode_leaves_what_recipes_leave_and_repeats_itself(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_short(recipe, tmp_path / "a", monkeypatch, seed=3)
    history = read_jsonl(first / "history.jsonl")
    # Four on crops, two on whole songs, and seven members' one and two passes over a batch each.
    assert [row["step"] for row in history] == list(range(1, 7 + 7 * 3))
    numbers = [[value for value in row.values() if value is not None] for row in history]
    assert all(np.isfinite(row).all() for row in numbers)
    # How far noise and songs are apart is learnt on crops alone.
    assert [row["apart"] is not None for row in history] == [True] * 4 + [False] * 23
    summary = json.loads((first / "summary.json").read_text())
    keys = {"reward_before", "reward_after", "reward_std_before", "seconds", "settings", "model"}
    assert keys <= set(summary)
    assert "demonstration" in summary["model"]
    assert (first / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (first / "clean.wav").is_file()
    assert (first / "timing-jitter.wav").is_file()
    assert len(read_table(first / "damage.csv")) == 9

    whole = ApexReward.from_pretrained(first / "apex_tiny")
    embedded = ApexReward.from_pretrained("apex-tiny")
    shapes, expected = ({n: v.shape for n, v in m.state_dict().items()} for m in (whole, embedded))
    assert shapes == expected
    own = ("_name_or_path", "spread_scale", "segment_seconds", "transformers_version")
    ours, theirs = (
        {key: value for key, value in m.config.to_dict().items() if key not in own}
        for m in (whole, embedded)
    )
    assert ours == theirs
    assert (whole.members, whole.config.demonstration) == (8, True)
    model = ApexReward.from_pretrained(first / "single")
    assert (model.members, model.config.demonstration) == (1, True)
    song = torch.from_numpy(make_song(5, 2.0))[None]
    scores = whole(song, 24_000)
    torch.testing.assert_close(scores.member(0).stack(), model(song, 24_000).stack())
    assert scores.std is not None
    assert scores.std.stack().min() > 0
    assert len(whole.config.spread_scale) == 7
    # A hundred songs of half a second: noise and silence are further away than any of them.
    strange = [0.2 * torch.randn(1, 24_000), torch.zeros(1, 24_000)]
    far = [whole.unfamiliarity(whole.embed(wave, 24_000)).item() for wave in strange]
    print("white noise, silence:", far)
    assert far[1] > 1

    second = run_short(recipe, tmp_path / "b", monkeypatch, seed=3)
    weights = "apex_tiny/model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    assert (first / "history.jsonl").read_bytes() == (second / "history.jsonl").read_bytes()


@pytest.mark.slow
def test_a_minute_of_training_separates_clean_from_damaged(recipe: ModuleType) -> None:
    settings = recipe.Settings(
        steps=70, songs=24, textures=4, song_seconds=5.0, crop_seconds=2.0, whole_songs=2,
        whole_batches=1, whole_passes=1,
    )  # fmt: skip
    _, history = recipe.train(settings, seed=0)
    crops = history[: settings.steps]
    before = np.mean([row["pairs_won"] for row in crops[:10]])
    after = np.mean([row["pairs_won"] for row in crops[-10:]])
    assert before < 0.65
    assert after > 0.72
    assert np.mean([row["ranking"] for row in crops[-10:]]) < crops[0]["ranking"] - 0.15


def test_a_step_learns_from_the_penalty_too(recipe: ModuleType) -> None:
    model, probe = recipe.build_model(1.0), torch.nn.Linear(96, 1)
    layers, targets = torch.randn(8, 4, 96), torch.rand(8, 7)
    penalty = probe(model.pooling(layers)).square().mean()
    optimizer = torch.optim.SGD(model.pooling.parameters(), lr=0.1)
    recipe.learn(model, optimizer, layers, targets, 1.0, penalty)
    assert probe.weight.grad is not None
    assert probe.weight.grad.abs().sum() > 0
