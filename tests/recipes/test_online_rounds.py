"""Online rounds: what they select, a kill and a resume, and what stops them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apex_reward.errors import UsageError
from apex_reward.files.tables import read_jsonl
from tests.recipes.support import recipe_module, run
from toys.notes import note_prompts, note_references

SMALL = ("--rounds", 2, "--candidates", 4, "--fresh", 2, "--warm_steps", 60)
HEARD_AT_THE_END = {"round": 2, "selected": 0}


@pytest.fixture(scope="module", autouse=True)
def small_toy() -> Iterator[None]:
    """Few prompts, and few songs to compare with."""
    prompts, references = note_prompts()[::6], note_references(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toys.notes.note_prompts", lambda: prompts)
        patch.setattr("toys.notes.note_references", lambda: references)
        yield


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert")
    run("online_rounds", folder, *SMALL)
    return folder


def test_expert_iteration_trains_on_the_best_of_each_prompt(expert: Path) -> None:
    ledger = read_jsonl(expert / "ledger.jsonl")
    assert [(row["round"], row["seed"]) for row in ledger] == [(0, 1000), (1, 2000), (2, 3000)]
    assert HEARD_AT_THE_END.items() <= ledger[2].items()
    assert ledger[2]["reward"] != ledger[0]["reward"]
    assert all(row["apex/distance"] > 0 and row["apex/embedding_spread"] > 0 for row in ledger)
    songs = read_jsonl(expert / "rounds" / "000" / "candidates.jsonl")
    assert len(songs) == ledger[0]["songs"] == 6 * 4
    known = [song["reward"] for song in songs if song["reward"] is not None]
    assert ledger[0]["reward"] == pytest.approx(sum(known) / len(known))
    best = {
        prompt: max(s["reward"] or 0.0 for s in songs if s["prompt"] == prompt)
        for prompt in {song["prompt"] for song in songs}
    }
    selected = read_jsonl(expert / "rounds" / "000" / "selected.jsonl")
    assert {song["prompt"]: song["reward"] for song in selected} == best
    summary = json.loads((expert / "summary.json").read_text())
    assert summary["reward_after"] == ledger[2]["reward"]
    assert summary["collapse"] is None
    assert {path.name for path in (expert / "rounds").iterdir()} == {"000", "001", "002"}


def test_dpo_trains_on_fresh_pairs_from_the_adapter_before(tmp_path: Path) -> None:
    history, _ = run("online_rounds", tmp_path, *SMALL, "--strategy", "dpo", "--top_k", 1)
    assert [row["step"] for row in history] == [0, 1, 2]
    rounds = [tmp_path / "rounds" / name for name in ("000", "001")]
    pairs = [read_jsonl(folder / "selected.jsonl") for folder in rounds]
    assert [len(made) for made in pairs] == [row["selected"] for row in history[:2]]
    assert all(p["chosen_reward"] > p["rejected_reward"] for made in pairs for p in made)
    assert pairs[0] != pairs[1]
    weights = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in rounds]
    assert len(weights[0]) == len(weights[1])  # the reference of a round is not kept
    assert weights[0] != weights[1]


def killed_in_round_one(folder: Path) -> int:
    """Wait status of a run that a SIGKILL ends in the middle of its second round."""
    child = os.fork()
    if child == 0:
        recipe = recipe_module("online_rounds")
        train = recipe.Rounds.train

        def train_or_die(self: Any, *given: Any) -> None:
            if len(self.rows) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            train(self, *given)

        recipe.Rounds.train = train_or_die
        recipe.main(["--output", str(folder), *map(str, SMALL)])
        os._exit(1)
    return os.waitpid(child, 0)[1]


def test_a_killed_run_goes_on_and_ends_with_the_same_ledger(expert: Path, tmp_path: Path) -> None:
    assert killed_in_round_one(tmp_path) == signal.SIGKILL
    (row,) = read_jsonl(tmp_path / "ledger.jsonl.partial")
    assert row["round"] == 0
    done = (tmp_path / "rounds" / "000" / "candidates.jsonl").stat().st_mtime_ns
    with pytest.raises(UsageError, match="made with other learning_rate"):
        run("online_rounds", tmp_path, *SMALL, "--resume", True, "--learning_rate", 1)
    run("online_rounds", tmp_path, *SMALL, "--resume", True)
    assert (tmp_path / "ledger.jsonl").read_bytes() == (expert / "ledger.jsonl").read_bytes()
    assert (tmp_path / "rounds" / "000" / "candidates.jsonl").stat().st_mtime_ns == done
    with pytest.raises(SystemExit, match="the run is finished"):
        run("online_rounds", tmp_path, *SMALL, "--resume", True)


def test_songs_that_grow_alike_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # More than the first spread is never left: the first round is the last.
    history, summary = run("online_rounds", tmp_path, *SMALL, "--least_spread", 1.5)
    assert len(history) == 1
    assert summary["collapse"].startswith("stopped after round 0: the songs of a prompt are")
    assert summary["collapse"] in capsys.readouterr().out
    assert len(read_jsonl(tmp_path / "ledger.jsonl")) == 1


def reason_of(rewards: list[float], held_out: list[float], spreads: list[float]) -> str | None:
    collapse = recipe_module("online_rounds").Collapse(0.25)
    for number, (reward, held, spread) in enumerate(zip(rewards, held_out, spreads, strict=True)):
        assert collapse.reason is None
        row = {"round": number, "reward": reward, "held_out": held}
        collapse.add({**row, "apex/embedding_spread": spread})
    reason: str | None = collapse.reason
    return reason


def test_what_is_a_collapse() -> None:
    rising, even = [0.1, 0.3, 0.4, 0.6], [0.08] * 4
    turned = reason_of(rising, [0.5, 0.4, 0.3, 0.1], even)
    assert turned is not None
    assert "after round 3: the held-out reward has fallen since step 0" in turned
    assert reason_of(rising, [0.5, 0.4, 0.45, 0.3], even) is None
    assert reason_of([0.6, 0.4, 0.3, 0.1], [0.5, 0.4, 0.3, 0.1], even) is None
    assert reason_of(rising, rising, [0.08, 0.06, 0.04, 0.02]) is None
    alike = reason_of(rising, rising, [0.08, 0.06, 0.04, 0.019])
    assert alike == (
        "stopped after round 3: the songs of a prompt are 0.019 apart, 0.08 in the first round; "
        "take an earlier round's adapter"
    )
