"""Cards of saved models."""

from __future__ import annotations

from pathlib import Path

import yaml

from apex_reward import ApexReward
from apex_reward.model.card import FILE, UNMEASURED
from tests.support import tiny_model


def test_a_saved_model_has_a_card(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    text = (tmp_path / "plain" / FILE).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["tags"] == ["music", "audio", "reward-model"]
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
