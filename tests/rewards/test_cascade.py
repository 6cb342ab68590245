"""A cascade: which songs the teacher scores, what the others earn, and where it can be used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from apex_reward import Head, Reward, Scores
from apex_reward.arena.score import score_battles
from apex_reward.audio.load import save_wav
from apex_reward.cli import app
from apex_reward.errors import UsageError
from apex_reward.pairs.unscored import score_unscored
from apex_reward.rewards.cascade import kept_songs, lost_share
from apex_reward.scoring import ScoreSettings, score_to_file

RATE = 8_000


class Level:
    """`power`: the mean of the samples; the student rounds it to tenths."""

    heads = (Head("power", 0.0, 1.0),)
    sample_rate = RATE
    differentiable = True
    reads_text = False

    def __init__(self, name: str = "teacher") -> None:
        self.name, self.songs = name, 0

    def __call__(self, waveforms: Tensor, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        self.songs += len(waveforms)
        mean = waveforms.mean(dim=-1)
        return Scores({"power": mean.round(decimals=1) if self.name == "student" else mean})


class Student(Level):
    """As `Level` by name."""

    def __init__(self) -> None:
        super().__init__("student")


LEVELS = (0.11, 0.52, 0.58, 0.31, 0.72, 0.44)
PROMPTS = ("a", "a", "a", "b", "b", "b")
SONGS = [(torch.full((RATE,), level), RATE) for level in LEVELS]


def cascade(keep: float = 0.5) -> Reward:
    return Reward.cascade(Level("student"), Level(), mix="power=1", keep=keep)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{n}.wav" for n in range(len(SONGS))]
    for path, (samples, rate) in zip(paths, SONGS, strict=True):
        save_wav(path, samples.numpy(), rate)
    return [str(path) for path in paths]


def check(rows: list[dict[str, Any]]) -> None:
    """Songs 1, 2, 4 and 5 are kept; the others lie below those of their prompt."""
    assert [row["judged_by"] for row in rows] == [
        "student", "teacher", "teacher", "student", "teacher", "teacher",
    ]  # fmt: skip
    assert [row["power"] for row in rows] == pytest.approx(
        [None, 0.52, 0.58, None, 0.72, 0.44], abs=1e-6
    )
    assert [row["reward"] for row in rows[1:3]] == pytest.approx([0.52, 0.58], abs=1e-6)
    assert -0.01 < rows[0]["reward"] < 0.52
    assert -0.01 < rows[3]["reward"] < 0.44
    assert rows[0]["reward_raw"] is None


def test_the_share_is_rounded_up_with_at_least_one_song_per_prompt():
    values = [0.1, 0.9, 0.5, 0.7, None, 0.2]
    assert kept_songs(values, "aaaabb", 0.25) == [1, 5]
    assert kept_songs(values, "aaaabb", 0.26) == [1, 3, 5]
    assert kept_songs([None, None], "aa", 1.0) == []
    assert len(kept_songs(list(range(30)), [0] * 30, 0.1)) == 3


def test_judge_scores_all_by_the_student_and_the_best_of_each_prompt_by_the_teacher():
    reward = cascade()
    rows = reward.judge(SONGS, PROMPTS)
    check(rows)
    assert (reward.student.model.songs, reward.model.songs) == (6, 4)
    whole = cascade(0.2).judge(SONGS)  # one group: ceil(1.2) = 2 songs
    assert [row["judged_by"] == "teacher" for row in whole] == [0, 0, 1, 0, 1, 0]
    best = sorted(whole, key=lambda row: row["reward"])
    assert [LEVELS[whole.index(row)] for row in best] == [0.11, 0.31, 0.44, 0.52, 0.58, 0.72]


def test_a_call_is_the_teacher_on_all_songs_with_its_gradient():
    waves = torch.stack([samples for samples, _ in SONGS]).requires_grad_()
    values = cascade()(waves, RATE)
    assert values.tolist() == pytest.approx(list(LEVELS), abs=1e-6)
    (gradient,) = torch.autograd.grad(values.sum(), waves)
    assert bool((gradient > 0).all())


def test_a_song_that_cannot_be_judged_is_its_own_row():
    rows = cascade().judge([*SONGS[:3], None], ["a"] * 4)
    assert rows[3]["judged_by"] is None
    assert "empty" in rows[3]["error"]
    assert [row["judged_by"] for row in rows[:3]] == ["student", "teacher", "teacher"]


def test_vetoed_songs_rank_last_and_others_stay_above_the_floor():
    reward = Reward.cascade(Level("student"), Level(), mix="power=1", guards="veto", keep=0.01)
    quiet = torch.rand(3, 5 * RATE, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    silent = torch.zeros(5 * RATE)
    rows = reward.judge([(song, RATE) for song in (*quiet, silent)])
    assert sum(row["judged_by"] == "teacher" for row in rows) == 1
    lowest = min(row["reward"] for row in rows if row["judged_by"] == "teacher")
    assert all(row["reward"] < lowest for row in rows if row["judged_by"] == "student")


def test_a_file_of_a_cascade_has_the_same_rows_and_resumes(files: list[str], tmp_path: Path):
    output, rows = tmp_path / "rows.jsonl", []

    def run(resume: bool) -> None:
        rows.clear()
        score_to_file(
            cascade(), files, output, ScoreSettings(True), groups=PROMPTS, resume=resume,
            on_row=lambda row, fresh: rows.append({**row, "fresh": fresh}),
        )  # fmt: skip

    run(resume=False)
    first = output.read_bytes()
    check([json.loads(line) for line in first.splitlines()])
    assert sorted(path.name for path in tmp_path.glob("rows*")) == [
        "rows.jsonl",
        "rows.jsonl.meta.json",
    ]
    run(resume=True)
    assert [row["fresh"] for row in rows] == [False] * 6
    with pytest.raises(UsageError, match="cascade"):
        score_to_file(cascade(0.9), files, output, ScoreSettings(True), groups=PROMPTS, resume=True)
    with pytest.raises(UsageError, match="--segments"):
        score_to_file(cascade(), files, tmp_path / "x.jsonl", ScoreSettings(True, segments=True))


def test_a_cascade_is_kept_by_a_reward_file(files: list[str], tmp_path: Path):
    name = f"{__name__}:"
    made = Reward.cascade(name + "Student", name + "Level", mix="power=1", keep=0.5)
    made.save(tmp_path / "reward.yaml")
    again = Reward.load(tmp_path / "reward.yaml")
    assert again.judge(files, PROMPTS) == made.judge(files, PROMPTS)
    check(again.judge(files, PROMPTS))


def test_candidates_are_scored_within_their_prompt(files: list[str]):
    table = pa.table({"prompt_id": PROMPTS, "audio": files})
    found = score_unscored(table, ["reward", "power"], cascade(), workers=0)
    assert found["power"].to_pylist() == pytest.approx(
        [None, 0.52, 0.58, None, 0.72, 0.44], abs=1e-6
    )
    assert all(math.isfinite(value) for value in found["reward"].to_pylist())
    # The same prompts where ids are missing and texts are spelled in two ways.
    texts = pa.table({"prompt_id": [None] * 5 + [""], "audio": files,
                      "prompt": ["x", "x", "X ", "b", " B", "b"]})  # fmt: skip
    assert score_unscored(texts, ["reward", "power"], cascade(), workers=0)["power"].equals(
        found["power"]
    )


def test_score_and_pairs_take_a_cascade(files: list[str], tmp_path: Path):
    songs, name = tmp_path / "songs.jsonl", f"{__name__}:"
    rows = zip(files, PROMPTS, strict=True)
    songs.write_text("".join(json.dumps({"audio": a, "prompt": p}) + "\n" for a, p in rows))
    options = ["--model", name + "Level", "--cascade", name + "Student", "--keep", "0.5"]
    options += ["--mix", "power=1", "--workers", "0", "--output"]
    output = tmp_path / "scores.jsonl"
    result = CliRunner().invoke(app, ["score", str(songs), *options, str(output)])
    assert result.exit_code == 0, result.output
    check([json.loads(line) for line in output.read_text().splitlines()])
    chosen = ["--axis", "reward", *options, str(tmp_path / "pairs")]
    result = CliRunner().invoke(app, ["pairs", str(songs), *chosen])
    assert result.exit_code == 0, result.output
    pairs = [json.loads(x) for x in (tmp_path / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert sorted(Path(pair["chosen"]).name for pair in pairs) == ["2.wav", "4.wav"]
    file = tmp_path / "reward.yaml"
    Reward.cascade(name + "Student", name + "Level", mix="power=2", keep=0.5).save(file)
    for mix in ([], ["--mix", "power=1"]):  # the prompts and the cascade of a reward file count
        options = ["--reward", str(file), *mix, "--workers", "0", "--output", str(output)]
        result = CliRunner().invoke(app, ["score", str(songs), *options])
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["judged_by"] for row in rows].count("teacher") == 4
    check(rows)
    result = CliRunner().invoke(app, ["pairs", str(songs), "--cascade", "x", "--dry-run"])
    assert result.exit_code == 2


def test_the_share_of_lost_choices_follows_from_the_correlation():
    assert lost_share(1.0, 16, 0.125) == 0
    assert lost_share(0.0, 16, 0.125) == pytest.approx(14 / 16, abs=0.03)
    assert lost_share(0.9, 16, 0.125) < lost_share(0.7, 16, 0.125) < 0.5
    assert cascade().lost_share(16) is None


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_a_share_outside_its_range_is_refused(keep: float):
    with pytest.raises(UsageError, match="keep"):
        cascade(keep)


def test_the_teacher_of_a_cascade_judges_all_songs_of_battles(files: list[str], tmp_path: Path):
    rows = [{"battle_uuid": "x", "preference": "A"}, {"battle_uuid": "y", "preference": "B"}]
    pairs = [(files[0], files[1]), (files[3], files[4])]
    output = tmp_path / "scored.jsonl"
    score_battles(rows, pairs, output, cascade(0.01), rewarded=True)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [[row["reward_a"], row["reward_b"]] for row in found] == [
        pytest.approx([0.11, 0.52], abs=1e-6), pytest.approx([0.31, 0.72], abs=1e-6),
    ]  # fmt: skip
