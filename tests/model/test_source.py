"""Sources: what loads a model again."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from apex_reward import ApexReward, load_reward_model
from apex_reward.errors import DataError, UsageError
from apex_reward.model.source import Source, source_of, with_source
from tests.support import tiny_model

KNOWN = ("songeval",)


def test_plain_form_is_a_name_or_a_mapping() -> None:
    full = Source("a/b", encoder="c", segment_tail="mask", revision="r")
    assert full.plain() == {"name": "a/b", "encoder": "c", "segment_tail": "mask", "revision": "r"}
    for source in (Source("apex-tiny"), full):
        assert Source.of_plain(source.plain()) == source
    for wrong in ({"encoder": "c"}, {"name": "a", "mix": "b"}, 3, "", None):
        with pytest.raises(DataError, match="expected a name, or a mapping with the keys name"):
            Source.of_plain(wrong)


def test_files_and_folders_get_absolute_paths(tmp_path: Path) -> None:
    for name in ("model", "encoder", "songeval"):
        (tmp_path / name).mkdir()

    def located(name: str) -> str:
        return Source(name).located(tmp_path, KNOWN).name

    assert located("model") == str(tmp_path / "model")
    assert located("songeval:model") == f"songeval:{tmp_path / 'model'}"
    for name in ("songeval", "songeval:a/b", "a/b", "mine.rewards:model", "http://host:8765"):
        assert located(name) == name
    both = Source("model", encoder="encoder").located(tmp_path, KNOWN)
    assert both.encoder == str(tmp_path / "encoder")


def test_a_loaded_model_carries_its_source(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = ApexReward.from_pretrained(tmp_path, segment_tail="mask", encoder=tmp_path)
    expected = Source(str(tmp_path), str(tmp_path), "mask")
    assert model.source == source_of(model) == expected
    assert copy.deepcopy(model).source == pickle.loads(pickle.dumps(model)).source == expected
    assert load_reward_model(expected, device="cpu").source == expected
    assert load_reward_model("apex-tiny", device="cpu").source == Source("apex-tiny")
    model.config.segment_tail = "drop"
    assert source_of(model).segment_tail == "drop"


def test_the_tail_of_a_checkpoint_is_kept_where_code_changes_it_back(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.segment_tail = "drop"
    model.save_pretrained(tmp_path)
    again = ApexReward.from_pretrained(tmp_path)
    again.config.segment_tail = "pad"
    assert source_of(again).segment_tail == "pad"


def test_what_no_name_brings_back_is_refused() -> None:
    with pytest.raises(UsageError, match="the model apex was made in code"):
        source_of(tiny_model())
    changed = ApexReward.from_pretrained("apex-tiny", segment_seconds=10.0)
    with pytest.raises(UsageError, match="apex-tiny was loaded with segment_seconds"):
        source_of(changed).plain()

    class Closed:
        """Takes no attributes."""

        __slots__ = ()

    assert not hasattr(with_source(Closed(), Source("a:Closed")), "source")
