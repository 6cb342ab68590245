"""Rewards in files: what a person may write, and every problem found together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apex_reward.errors import ApexError, DataError
from apex_reward.rewards.saved import lasting, load_reward, source_of
from apex_reward.scores.mix import RewardMix
from tests.support import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "reward.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("models", "head"), [("model", "clarity"), ("[model]", "apex.clarity")])
def test_a_model_beside_the_file_and_a_mix_in_words(folder: Path, models: str, head: str) -> None:
    reward = load_reward(written(folder, f"models: {models}\nmix: {head}=2\n"), device="cpu")
    assert reward.mix.weights == {head: 2.0}
    assert (reward.loudness, reward.caution) == (None, 0.0)
    assert list(reward.sources.values()) == ["model"]


def test_models_by_name_and_a_mix_with_its_normalisation(folder: Path) -> None:
    path = written(
        folder,
        "models: {one: model, two: model}\nloudness: -20\n"
        "mix: {weights: {one.clarity: 1, two.clarity: 2}, normalization: none}\n",
    )
    reward = load_reward(path, device="cpu")
    assert reward.mix == RewardMix({"one.clarity": 1.0, "two.clarity": 2.0}, "none")
    assert reward.loudness == -20
    assert reward.sources == {"one": "model", "two": "model"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- model\n", "it holds list; expected the keys"),
        ("models: model\ncaution: true\n", "caution is True; expected a number"),
        ("models: model\nloudness: loud\nmixes: a\n", "unknown key 'mixes'(.|\n)*loudness is 'lo"),
        ("mix: clarity=1\n", "'models' names no model"),
        ("models: model\nmix: loud=1\n", r"reward\.yaml: .*loud"),
        ("models: [", "cannot be read as YAML"),
    ],
)
def test_files_that_are_no_reward(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ApexError, match=message):
        load_reward(written(folder, text), device="cpu")
    with pytest.raises(DataError, match="gone.yaml does not exist"):
        load_reward(folder / "gone.yaml")


def test_sources_mean_the_same_from_any_folder(folder: Path) -> None:
    assert lasting("model", folder) == str(folder / "model")
    assert lasting("songeval:model", folder) == f"songeval:{folder / 'model'}"
    assert lasting("amaai-lab/apex", folder) == "amaai-lab/apex"
    assert lasting("mine.rewards:Model", folder) == "mine.rewards:Model"
    relative = os.path.relpath(folder / "model")
    assert lasting(relative, folder / "elsewhere") == str(folder / "model")


class Found:
    """A class that its module gives."""


def test_a_model_is_found_again_by_what_it_was_loaded_from_or_by_its_class() -> None:
    class Hidden:
        """A class that no module gives."""

        name = "hidden"

    model = Found()
    assert source_of(model) == f"{__name__}:Found"
    model.name_or_path = "somewhere"
    assert source_of(model) == "somewhere"
    with pytest.raises(ApexError, match="the model hidden was made in code and has no name"):
        source_of(Hidden())
