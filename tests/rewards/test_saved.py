"""Rewards in files: what a person may write, and every problem found together."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from apex_reward import ApexReward, Guards, load_reward_model
from apex_reward.errors import ApexError, DataError
from apex_reward.model import save_predictor
from apex_reward.model.source import Source, source_of
from apex_reward.rewards.reward import Reward
from apex_reward.scores.head import Head
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.scores import Scores
from tests.muq_support import tiny_songeval
from tests.support import golden_song, tiny_model, write_best_model, write_mert_folder


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
    reward = Reward.load(written(folder, f"models: {models}\nmix: {head}=2\n"), device="cpu")
    assert reward.mix.weights == {head: 2.0}
    assert (reward.loudness, reward.caution) == (None, 0.0)
    assert list(reward.sources.values()) == [str(folder / "model")]


def test_models_by_name_and_a_mix_with_its_normalisation(folder: Path) -> None:
    path = written(
        folder,
        "models: {one: model, two: model}\nloudness: -20\n"
        "mix: {weights: {one.clarity: 1, two.clarity: 2}, normalization: none}\n",
    )
    reward = Reward.load(path, device="cpu")
    assert reward.mix == RewardMix({"one.clarity": 1.0, "two.clarity": 2.0}, "none")
    assert reward.loudness == -20
    assert reward.sources == dict.fromkeys(("one", "two"), str(folder / "model"))


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
        Reward.load(written(folder, text), device="cpu")
    with pytest.raises(DataError, match="gone.yaml does not exist"):
        Reward.load(folder / "gone.yaml")


SONG = torch.cat(
    [torch.tensor(golden_song(n, 24_000, 1, s)[0]) * n for n, s in ((1, 30.0), (9, 3.5))]
)[None]


class Own:
    """A reward model of one's own."""

    name, heads, sample_rate, differentiable, reads_text = (
        "own",
        (Head("x", -1.0, 1.0),),
        24_000,
        True,
        False,
    )

    def __call__(self, waveforms: Tensor, sample_rate: int, **_: object) -> Scores:
        return Scores({"x": waveforms.mean(dim=1)}, self.heads)


def value(reward: Reward) -> float:
    with torch.no_grad():
        return reward(SONG, 24_000).item()


def saved_and_loaded(reward: Reward, path: Path) -> Reward:
    """Loaded from another working folder."""
    reward.save(path)
    with contextlib.chdir("/"):
        return Reward.load(path, device="cpu")


def test_every_way_to_make_a_model_is_saved_with_its_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last half second of 33.5 s weighs less masked than padded, and is dropped."""
    monkeypatch.chdir(folder)
    model = ApexReward.from_pretrained("model", segment_tail="mask")
    save_predictor(folder / "best", model.config, model.predictor, model.pooling)
    ways = {
        "object": model,
        "composed": ApexReward.from_pretrained("best", encoder="model"),
        "named": load_reward_model("model", device="cpu", segment_tail="drop"),
        "changed": ApexReward.from_pretrained("model"),
    }
    ways["changed"].config.segment_tail = "drop"
    values = {}
    for name, made in ways.items():
        reward = Reward(made, mix="clarity=1")
        values[name] = value(reward)
        assert value(saved_and_loaded(reward, folder / f"{name}.yaml")) == values[name]
    assert values["object"] != values["changed"] == values["named"]
    panel = Reward([model, load_reward_model(f"{__name__}:Own", device="cpu")], "apex.clarity=1")
    assert value(saved_and_loaded(panel, folder / "panel.yaml")) == values["object"]


@pytest.mark.slow
def test_published_files_are_composed_again(tmp_path: Path) -> None:
    small = {"conv_dim": [8] * 7, "intermediate_size": 16, "num_hidden_layers": 12}
    head = write_best_model(tmp_path / "best_model.pt", "full", 2)
    encoder = write_mert_folder(tmp_path / "encoder", small)
    model = ApexReward.from_published(head, encoder)
    reward = Reward(model, mix="clarity=1")
    assert value(saved_and_loaded(reward, tmp_path / "reward.yaml")) == value(reward)


def test_a_file_names_models_and_the_default_guards_in_short(folder: Path) -> None:
    model = load_reward_model(str(folder / "model"), device="cpu", segment_tail="mask")
    path = folder / "reward.yaml"
    Reward(model, "clarity=1", guards="penalty").save(path)
    values = yaml.safe_load(path.read_text())
    assert values["models"] == {"name": "./model", "segment_tail": "mask"}
    assert values["guards"] == "penalty"
    moved = folder.rename(folder.with_name("moved"))
    assert Reward.load(moved / path.name, device="cpu").sources == {"apex": str(moved / "model")}
    moved.rename(folder)
    assert Reward.load(path, device="cpu").guards == Guards.default("penalty")
    Reward("apex-tiny", guards=Guards.default("flag").limit("dc", high=0.1)).save(path)
    values = yaml.safe_load(path.read_text())
    assert (values["models"], len(values["guards"]["guards"])) == ("apex-tiny", 11)


def test_weights_of_a_foreign_model_lie_beside_the_file(folder: Path) -> None:
    tiny_songeval().save_pretrained(folder / "weights")
    text = "models: songeval:weights\nmix: coherence=1\n"
    reward = Reward.load(written(folder, text), device="cpu")
    assert reward.sources == {"songeval": f"songeval:{folder / 'weights'}"}
    reward.save(folder / "again.yaml")
    saved = yaml.safe_load((folder / "again.yaml").read_text())["models"]
    assert saved == "songeval:./weights"


def test_a_model_made_in_code_is_refused(folder: Path) -> None:
    own = Own()
    assert source_of(own) == Source(f"{__name__}:Own")
    own.gain = 2.0
    for model in (tiny_model(), own):
        with pytest.raises(ApexError, match=f"the model {model.name} was made in code"):
            Reward(model, f"{model.heads[0].name}=1", guards=None).save(folder / "reward.yaml")
