"""Cards of saved models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel

from apex_reward import ApexReward
from apex_reward.model.apex import EMPTY_CARD
from apex_reward.model.card import FILE, UNMEASURED
from tests.support import tiny_model


def test_a_saved_model_has_a_card(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    text = (tmp_path / "plain" / FILE).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["tags"] == ["music", "audio", "reward-model"]
    assert "| musicality | 1 to 5 |" in text
    assert 'reward = Reward("THIS")' in text
    assert "Started from no other model. Licences: predictor weights" in text
    assert UNMEASURED in text
    assert "demonstration" not in text.lower()


def test_a_demonstration_says_so_and_a_card_of_ones_own_stays(tmp_path: Path) -> None:
    model = ApexReward.from_pretrained("apex-tiny")
    model.save_pretrained(tmp_path)
    text = (tmp_path / FILE).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["tags"][-1]) == ("apache-2.0", "demonstration")
    assert "**A demonstration.**" in text
    (tmp_path / FILE).write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / FILE).read_text() == "mine"


def test_the_first_push_carries_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def upload(self: Any, working_dir: Any, *args: Any, **kwargs: Any) -> None:
        sent.append((Path(working_dir) / FILE).read_text())

    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", upload)
    (tmp_path / FILE).write_text(f"{EMPTY_CARD}.")
    tiny_model()._upload_modified_files(tmp_path, "ann/model", {})
    (tmp_path / FILE).write_text("Ann's own words")
    tiny_model()._upload_modified_files(tmp_path, "ann/model", {})
    assert "# A reward model for songs" in sent[0]
    assert sent[1] == "Ann's own words"
