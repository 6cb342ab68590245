"""One reward file for every recipe: a panel through a step of GRPO and of back-propagation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from apex_reward.files.tables import read_jsonl
from tests.clap_support import write_tiny_clap
from tests.muq_support import tiny_songeval
from tests.recipes.support import ROOT, run
from tests.support import tiny_model
from toys import melodies, notes

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toys that have learnt little, and few reference songs: the tests check the wiring."""
    few_notes, few_melodies = notes.note_references(3), melodies.melody_references(3)
    fit = melodies.MelodyFlow._fit
    monkeypatch.setattr("toys.notes.note_references", lambda: few_notes)
    monkeypatch.setattr(melodies, "melody_references", lambda: few_melodies)
    monkeypatch.setattr(melodies, "melody_prompts", lambda: (["0 0", "1 2"], ["0 1", "1 0"]))
    monkeypatch.setattr(melodies.MelodyFlow, "_fit", lambda self, seed, steps: fit(self, seed, 3))
    train = notes.note_model
    monkeypatch.setattr(
        notes, "note_model", lambda tokenizer, seed, steps: train(tokenizer, seed, 20)
    )


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example panel over small models of the same kinds."""
    folder = tmp_path_factory.mktemp("panel")
    tiny_model(3).save_pretrained(folder / "apex")
    tiny_songeval().save_pretrained(folder / "songeval")
    write_tiny_clap(folder / "clap")
    values = yaml.safe_load((ROOT / "recipes" / "panel.yaml").read_text())
    assert set(values["models"]) == {"apex", "songeval", "clap"}
    assert values["mix"]["normalization"] == "zscore"
    assert set(values["mix"]["reference"]) == set(values["mix"]["weights"])
    folders = {"apex": "apex", "songeval": "songeval:songeval", "clap": "clap:clap"}
    values["models"] = folders  # beside the file
    (folder / "panel.yaml").write_text(yaml.safe_dump(values))
    return folder / "panel.yaml"


def test_a_step_of_grpo(panel: Path, tmp_path: Path) -> None:
    small = ["--per_device_train_batch_size", 4, "--num_generations", 2, "--max_steps", 1]
    words = ["--reward", panel, *small, "--holdout-reward", panel, "--holdout-steps", 1]
    history, summary = run("grpo_codec_lm", tmp_path, *words, "--figures", "pdf,svg")
    for name in ("apex.musicality", "songeval.clarity", "clap.adherence", "distance"):
        assert isinstance(history[0][f"apex/{name}"], float)
    assert isinstance(history[0]["holdout/reward"], float)
    assert summary["settings"]["reward"] == str(panel)
    rows = read_jsonl(tmp_path / "completions.jsonl")
    assert len(rows) == 4
    assert {f"curves.{kind}" for kind in ("png", "pdf", "svg")} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_a_step_of_back_propagation(panel: Path, tmp_path: Path) -> None:
    words = ["--reward", panel, "--max_steps", 1, "--per_device_train_batch_size", 2]
    history, summary = run("reward_backprop", tmp_path, *words)
    assert history[0]["grad_norm"] > 0
    assert isinstance(history[0]["apex/clap.adherence"], float)
    assert summary["reward_after"] == pytest.approx(history[0]["held_out"], abs=1e-4)
