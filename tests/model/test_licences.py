"""What is known of licences, and the check for commercial use."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from apex_reward import ApexReward, Head, Reward
from apex_reward.errors import UsageError
from apex_reward.model.licences import (
    CODE,
    apex_licences,
    check_commercial,
    licence,
    licences_of,
    stated,
)
from apex_reward.rewards.load import FOREIGN
from apex_reward.rewards.saved import provenance

KEYS = {"part", "licence", "commercial", "source"}


def foreign(name: str) -> type:
    module, _, kind = FOREIGN[name].partition(":")
    return getattr(importlib.import_module(module), kind)


@pytest.mark.parametrize(
    ("name", "commercial"),
    [
        ("songeval", False), ("clap", True), ("tunejury", False), ("audiobox", True),
        ("muq-eval", False), ("lyrics", True), ("rulers", True),
        ("judge", True),
    ],
)  # fmt: skip
def test_every_model_states_its_licences(name: str, commercial: bool) -> None:
    licences = foreign(name).licences
    assert all(set(one) == KEYS for one in licences)
    assert all(one["commercial"] is True for one in licences) is commercial


def test_songeval_s_head_is_not_free() -> None:
    by_part = {one["part"]: one for one in foreign("songeval").licences}
    assert by_part["SongEval head"]["licence"] == "CC BY-NC-SA 4.0"
    assert by_part["SongEval head"]["commercial"] is False
    assert by_part["SongEval code"]["commercial"] is True
    assert by_part["MuQ weights"]["licence"] == "CC BY-NC 4.0"


def test_apex_models() -> None:
    assert [one["commercial"] for one in ApexReward.from_pretrained("apex-tiny").licences] == [
        True, True,
    ]  # fmt: skip
    published = apex_licences("amaai-lab/apex", "m-a-p/MERT-v1-95M")
    assert [one["commercial"] for one in published] == [True, True, None]
    assert [one["commercial"] for one in apex_licences("mine", "my/encoder")] == [True, None, None]


def test_a_reward_has_the_licences_of_its_models_each_part_once() -> None:
    reward = Reward({"a": "apex-tiny", "b": "apex-tiny", "own": Own()}, "a.clarity=1")
    assert [one["part"] for one in reward.licences()] == [
        CODE["part"], "apex-tiny weights", "own",
    ]  # fmt: skip
    assert Reward("apex-tiny").licences() == ApexReward.from_pretrained("apex-tiny").licences
    about = provenance(reward)["models"]
    assert stated(about["a"]["licences"]) == "apex-tiny weights: Apache-2.0"
    assert about["own"]["licences"][0]["commercial"] is None
    with pytest.raises(UsageError, match="own: not known"):
        check_commercial(reward.licences())


class Own:
    """A model made in code, which states no licence."""

    name = "own"
    heads = (Head("power", 0, 1),)
    sample_rate = 8_000
    differentiable, reads_text = False, False

    def __call__(self, *arguments: object, **options: object) -> None:
        """Not called."""


def test_commercial_use_is_refused_by_name() -> None:
    own = SimpleNamespace(name="own")
    free = SimpleNamespace(name="free", licences=[CODE])
    licences = licences_of([free, own, SimpleNamespace(licences=foreign("clap").licences)])
    assert [one["part"] for one in licences] == [CODE["part"], "own", "CLAP weights"]
    assert stated(licences) == "own: not known; CLAP weights: Apache-2.0"
    check_commercial(licences_of([free]))
    with pytest.raises(UsageError, match=r"own: not known.*weights: CC BY-NC 4.0 \(there\)") as e:
        check_commercial([*licences, licence("weights", "CC BY-NC 4.0", False, "there")])
    assert "CLAP" not in str(e.value)
