"""`apex-reward pairs`: files, exit codes, errors, dry run, scoring of candidates without scores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apex_reward import build_pairs
from apex_reward.cli import app
from apex_reward.files.tables import read_jsonl, read_table, write_table
from tests.support import tiny_model, write_wav


def run(*arguments: object):
    return CliRunner().invoke(app, ["pairs", *map(str, arguments)])


def rows() -> list[dict]:
    return [
        {
            "prompt_id": n // 5,
            "audio": f"{n}.wav",
            "musicality": (n * 7 % 11) / 2,
            "clarity": (n * 5 % 9) / 2,
            "score_likes": float(n * 13 % 50),
            "flags": ["silent"] if n == 3 else [],
            "duration": 10.0 + n % 3,
        }
        for n in range(30)
    ]


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "candidates.jsonl"
    write_table(path, rows())
    return path


def test_the_folder_is_what_build_pairs_returns(table, tmp_path):
    done = run(
        *(table, "--strategy", "pareto", "--axis", "musicality", "--axes", "clarity"),
        *("--min-margin", 0.5, "--protect", "score_likes=20", "--drop-flags", "silent,clipped"),
        *("--chosen-floor", "q0.3", "--rejected-ceiling", 4, "--match-duration", 2),
        *("--max-pairs-per-prompt", 3, "--max-pairs-per-candidate", 2, "--balance-axes"),
        *("--test-share", 0.4, "--seed", 3, "--output", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.output
    pairs, dropped = build_pairs(
        rows(),
        strategy="pareto",
        axis="musicality",
        axes=["clarity"],
        min_margin=0.5,
        protect={"score_likes": 20.0},
        drop_flags=["silent", "clipped"],
        chosen_floor="q0.3",
        rejected_ceiling=4,
        match_duration=2.0,
        max_pairs_per_prompt=3,
        max_pairs_per_candidate=2,
        balance_axes=True,
        test_share=0.4,
        seed=3,
    )
    assert pairs
    assert read_jsonl(tmp_path / "out" / "pairs.jsonl") == pairs
    assert read_jsonl(tmp_path / "out" / "dropped.jsonl") == dropped
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dropped.jsonl",
        "pairs.jsonl",
        "pairs.parquet",
        "report.html",
        "summary.json",
    ]


def test_thresholds_are_read_by_name(table, tmp_path):
    done = run(
        *(table, "--strategy", "two-axis", "--threshold", "musicality=3", "--threshold"),
        *("overall-not-a-column=1", "--output", tmp_path / "out"),
    )
    assert done.exit_code == 1
    assert "no column 'overall-not-a-column'" in done.output
    mix = "musicality=1,score_likes=0.5"
    done = run(
        *(table, "--strategy", "two-axis", "--threshold", "clarity=2", "--threshold", f"{mix}=0.5"),
        *("--output", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.output
    for pair in read_jsonl(tmp_path / "out" / "pairs.jsonl"):
        assert pair["chosen_clarity"] >= 2
        assert pair[f"chosen_{mix}"] >= 0.5
        assert pair["rejected_clarity"] < 2 or pair[f"rejected_{mix}"] < 0.5


def test_dry_run_says_what_each_filter_drops_and_writes_nothing(table, tmp_path):
    done = run(table, "--min-margin", 4.5, "--drop-flags", "silent", "--dry-run")
    assert done.exit_code == 0, done.output
    for part in ("flag silent", "margin below 4.5", "not selected by best-worst", "proposed"):
        assert part in done.output
    counts = re.findall(r"-?\d+$", done.output.replace(" ", ""), re.MULTILINE)
    assert counts
    assert not [count for count in counts if count.startswith("-")]
    assert list(tmp_path.iterdir()) == [table]


def test_an_empty_test_split_is_said(table, tmp_path):
    done = run(table, "--test-share", 0.05, "--output", tmp_path / "out")
    assert "the test split is empty: 6 pairs are too few for a share of 0.05" in " ".join(
        done.output.split()
    )
    assert done.exit_code == 0


def test_no_pair_is_said_and_still_writes_the_folder(table, tmp_path):
    done = run(table, "--min-margin", 50, "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert "no pair was made" in done.output
    assert len(read_jsonl(tmp_path / "out" / "dropped.jsonl")) == 30 + 6
    assert (tmp_path / "out" / "report.html").exists()


def test_rows_that_failed_before_are_drops_and_unreadable_audio_fails_this_run(tmp_path):
    failed = rows()
    failed[0]["error"] = "is empty (0 bytes)"
    write_table(tmp_path / "c.jsonl", failed)
    done = run(tmp_path / "c.jsonl", "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert "not scored" in done.output
    (tmp_path / "7.wav").write_text("not a song")
    done = run(tmp_path / "c.jsonl", "--output", tmp_path / "out")
    assert done.exit_code == 1
    assert "1 candidate could not be read" in done.output
    reasons = {r["audio"]: r["reason"] for r in read_jsonl(tmp_path / "out" / "dropped.jsonl")}
    assert reasons["7.wav"].startswith("unreadable audio: is not audio that can be decoded")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--top-k", "2", "--quantile", "0.5"], 2, "--quantile is read by margin and mrsd only"),
        (["--format", "csv"], 2, "'csv' is not one of"),
        (["--protect", "clarity"], 2, "--protect is 'clarity'; expected NAME=NUMBER"),
        (["--axis", "beauty"], 1, "no column 'beauty'; the numeric columns are prompt_id"),
        (
            ["--axis", "musicality=x"],
            1,
            "'musicality=x' in the mix 'musicality=x' is not HEAD=WEIGHT",
        ),
    ],
)
def test_wrong_options_end_in_one_clear_error(arguments, code, message, table, tmp_path):
    done = run(table, *arguments, "--output", tmp_path / "out")
    assert done.exit_code == code
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_output_or_dry_run_is_needed(table):
    done = run(table)
    assert done.exit_code == 2
    assert "give --output FOLDER, or --dry-run" in done.output


def test_candidates_without_scores_are_scored(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    unscored = []
    for n in range(6):
        write_wav(tmp_path / "songs" / f"{n}.wav", seconds=1.5, seed=n)
        unscored.append({"prompt_id": n // 3, "audio": f"songs/{n}.wav", "clarity": 9.0})
    unscored[1]["musicality"] = 5.5  # given scores stay
    (tmp_path / "songs" / "5.wav").write_text("not a song")
    write_table(tmp_path / "candidates.jsonl", unscored)
    done = run(
        *(tmp_path / "candidates.jsonl", "--strategy", "all", "--axis", "musicality"),
        *("--model", tmp_path / "model", "--output", tmp_path / "out"),
    )
    assert done.exit_code == 1, done.output
    assert "1 candidate could not be read or scored" in done.output
    pairs = read_jsonl(tmp_path / "out" / "pairs.jsonl")
    dropped = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert [pair["chosen"] for pair in pairs if pair["chosen_musicality"] == 5.5] == [
        "songs/1.wav"
    ] * 2
    assert len(pairs) == 3 + 1
    assert [row["audio"] for row in dropped] == ["songs/5.wav"]
    assert "not audio that can be decoded" in dropped[0]["reason"]
    model = tiny_model()
    from apex_reward.scoring import score_songs

    expected = {
        f"songs/{Path(row['path']).name}": row["musicality"]
        for row in score_songs(model, [str(tmp_path / "songs" / f"{n}.wav") for n in (0, 2)])
    }
    found = {pair["rejected"]: pair["rejected_musicality"] for pair in pairs}
    found |= {pair["chosen"]: pair["chosen_musicality"] for pair in pairs}
    for audio, value in expected.items():
        assert found[audio] == pytest.approx(value, abs=1e-4)


def test_pairs_that_the_members_agree_on(tmp_path):
    """Songs scored with an ensemble on the way to pairs; the agreement against a loop."""
    tiny_model(members=3).save_pretrained(tmp_path / "model")
    for n in range(6):
        write_wav(tmp_path / f"{n}.wav", 1.2 + 0.2 * n, seed=n)
    songs = tmp_path / "songs.jsonl"
    write_table(songs, [{"prompt": "a song", "audio": f"{n}.wav"} for n in range(6)])
    axis = "musicality=1,clarity=0.5"
    asked = (songs, "--strategy", "all", "--axis", axis, "--model", tmp_path / "model")
    assert run(*asked, "--min-agreement", 1, "--output", tmp_path / "sure").exit_code == 0
    assert run(*asked, "--min-agreement", 0, "--output", tmp_path / "any").exit_code == 0
    done = CliRunner().invoke(
        app,
        [
            "score",
            *(str(tmp_path / f"{n}.wav") for n in range(6)),
            "--members",
            "--workers",
            "0",
            "--model",
            str(tmp_path / "model"),
            "--mix",
            axis,
            "--output",
            str(tmp_path / "s.csv"),
        ],
    )
    assert done.exit_code == 0, done.output
    scored = {Path(row["path"]).name: row for row in read_table(tmp_path / "s.csv").to_pylist()}
    for row in scored.values():
        assert row["reward"] == pytest.approx(
            sum(row[f"reward_member{i}"] for i in range(3)) / 3, rel=1e-5
        )
    every = read_jsonl(tmp_path / "any" / "pairs.jsonl")
    assert len(every) == 15
    for pair in every:
        a, b = scored[pair["chosen"]], scored[pair["rejected"]]
        ahead = [a[f"reward_member{i}"] > b[f"reward_member{i}"] for i in range(3)]
        assert pair["agreement"] == pytest.approx(sum(ahead) / 3)
    sure = read_jsonl(tmp_path / "sure" / "pairs.jsonl")
    assert [pair["agreement"] for pair in sure] == [1.0] * len(sure)
    assert len(sure) == sum(pair["agreement"] == 1 for pair in every)
    assert ">agreement</th>" in (tmp_path / "any" / "report.html").read_text()
    wrong = run(songs, "--model", "apex-tiny", "--min-agreement", 2, "--output", tmp_path / "x")
    assert wrong.exit_code == 2
    assert "--min-agreement is 2.0; expected a share between 0 and 1" in wrong.output
    tiny_model().save_pretrained(tmp_path / "one")
    wrong = run(songs, "--model", tmp_path / "one", "--min-agreement", 1, "--dry-run")
    assert wrong.exit_code == 2
    assert "needs an ensemble" in wrong.output


def test_a_model_that_lacks_the_axis_is_wrong_usage(tmp_path):
    tiny_model(task="popularity").save_pretrained(tmp_path / "model")
    write_table(tmp_path / "c.jsonl", [{"prompt_id": 1, "audio": "a.wav"}])
    done = run(tmp_path / "c.jsonl", "--model", tmp_path / "model", "--dry-run")
    assert done.exit_code == 2
    assert "but the axes read none of them" in done.output


def test_formats_are_written_beside_the_folder(table, tmp_path):
    for form, name in (("trl", "data/train-00000-of-00001.parquet"), ("kto", "README.md")):
        done = run(table, "--format", form, "--output", tmp_path / form)
        assert done.exit_code == 0
        assert (tmp_path / form / form / name).exists()
    done = run(table, "--format", "tangoflux", "--output", tmp_path / "t")
    entries = json.loads((tmp_path / "t" / "tangoflux" / "train.json").read_text())
    assert done.exit_code == 0
    assert set(entries[0]) == {"chosen", "reject", "captions", "duration"}
    assert entries[0]["duration"] >= 10.0
