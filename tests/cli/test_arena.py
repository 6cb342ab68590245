import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from apex_reward.arena.protocol import run_protocol
from apex_reward.cli import app
from apex_reward.files.tables import read_json, read_table, write_table
from apex_reward.model import ApexReward
from apex_reward.scores.mix import RewardMix
from tests.arena.simulate import simulate_battles, simulate_heads
from tests.support import tiny_model, write_wav

SYSTEMS = {"one": -1.0, "two": 0.0, "three": 1.0}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["arena", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def table(tmp_path):
    rows = simulate_battles(
        300, slopes={"s": 0.8, "t": 0.0}, strengths=SYSTEMS, prompts=150, undecided=0.1, seed=1
    )
    write_table(tmp_path / "battles.csv", rows)
    return tmp_path / "battles.csv"


def test_evaluate_writes_the_contract(table, tmp_path):
    output = run("evaluate", table, "--output", tmp_path / "out", "--bootstrap", 50)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n_battles"] == 300
    assert metrics["n_decided"] == 300 - metrics["dropped"]["TIE"] - metrics["dropped"]["BOTH_BAD"]
    assert set(metrics["scores"]) == {"s", "t"}
    for stratum in ("overall", "instrumental", "vocal"):
        entry = metrics["scores"]["s"][stratum]
        assert {"n", "accuracy", "accuracy_ci95", "auc", "auc_ci95", "direction", "p_value"} <= set(
            entry
        )
    for name in ("position_a", "system_only"):
        assert {"accuracy", "accuracy_ci95"} <= set(metrics["baselines"][name])
    assert "classifiers" not in metrics
    assert "s agrees with people" in output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "report.html",
        "report.md",
    }


def test_figures_are_written_as_files_too(table, tmp_path):
    out = tmp_path / "out"
    run("evaluate", table, "--output", out, "--bootstrap", 20, "--figures", "pdf,svg")
    for ending in ("png", "pdf", "svg"):
        assert (out / f"reliability_s.{ending}").is_file()


def test_evaluate_without_output_prints_and_writes_nothing(table, tmp_path):
    before = set(tmp_path.iterdir())
    output = run("evaluate", table, "--score", "s", "--bootstrap", 20)
    assert "agrees" in output
    assert set(tmp_path.iterdir()) == before


def test_the_seed_reaches_the_bootstrap_and_nothing_else_moves(table, tmp_path):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("evaluate", table, "--output", tmp_path / name, "--bootstrap", 50, "--seed", seed)
        texts.append((tmp_path / name / "metrics.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_several_tables_are_compared_on_the_same_battles(table, tmp_path):
    other = [
        {"battle_uuid": row["battle_uuid"], "u_a": row["s_a"], "u_b": row["s_b"]}
        for row in read_table(table).to_pylist()
    ]
    write_table(tmp_path / "other.jsonl", other)
    run("evaluate", table, "--table", tmp_path / "other.jsonl", "--output", tmp_path / "out",
        "--score", "s", "--score", "u", "--bootstrap", 20)  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["mcnemar"]["s vs u"] == {
        **{"n": metrics["n_decided"], "only_first": 0, "only_second": 0, "p_value": 1.0}
    }


def test_classifiers_write_table_3(tmp_path, monkeypatch):
    fast = functools.partial(run_protocol, classifiers=["LR"])
    monkeypatch.setattr("apex_reward.arena.protocol.run_protocol", fast)
    write_table(tmp_path / "heads.parquet", simulate_heads(120))
    output = run("evaluate", tmp_path / "heads.parquet", "--score", "musicality", "--classifiers",
                 "--bootstrap", 20, "--output", tmp_path / "out")  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["scores"]) == ["musicality"]
    assert 0.3 < metrics["classifiers"]["published"]["with_aesthetics"]["LR"]["auc_overall"] < 0.8
    assert (tmp_path / "out" / "table3.csv").exists()
    assert "The published rules predict A where B scores higher" in output.replace("\n", " ")
    assert "Table 3" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "BATTLES", "--score", "nothing"], 2, "no columns nothing_a and nothing_b"),
        (["evaluate", "nowhere.csv"], 1, "nowhere.csv does not exist"),
        (["evaluate", "BATTLES", "--classifiers"], 1, "the classifiers need the seven heads"),
        (["calibrate", "BATTLES"], 2, "name what to calibrate with --score"),
        (["calibrate", "BATTLES", "--score", "s", "--anchors", "many"], 2, "expected numbers"),
        (["calibrate", "BATTLES", "--score", "s", "--attach", "x"], 2, "needs --output"),
        (["evaluate", "BATTLES", "--last-months", "0"], 2, "Invalid value for '--last-months'"),
        (["leaderboard", "BATTLES", "--score", "nothing"], 2, "no columns nothing_a"),
    ],
)
def test_wrong_calls_have_their_exit_code_and_say_why(table, arguments, code, message):
    output = run(*(table if part == "BATTLES" else part for part in arguments), code=code)
    assert message in " ".join(output.split())


def test_filters_reach_the_data_card(table, tmp_path):
    run("evaluate", table, "--last-months", 2, "--bootstrap", 20, "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    months = {key for key in metrics["scores"]["s"] if key.startswith("month:")}
    assert months == {"month:2026-03", "month:2026-04"}
    assert metrics["dropped"]["outside_dates"] > 50
    assert metrics["n_battles"] == 300
    assert "outside dates" in (tmp_path / "out" / "report.md").read_text()


def test_binary_votes_leave_the_ties_out_of_a_leaderboard(table, tmp_path):
    used = []
    for flags in ([], ["--binary"]):
        run("leaderboard", table, "--bootstrap", 5, "--output", tmp_path / "out", *flags)
        used.append(json.loads((tmp_path / "out" / "metrics.json").read_text()))
    ties = sum(row["preference"] == "TIE" for row in read_table(table).to_pylist())
    assert used[0]["n_used"] - used[1]["n_used"] == ties > 0
    assert used[1]["dropped"]["TIE"] == ties


def test_calibrate_writes_a_head_that_a_model_offers(tmp_path):
    rows = simulate_heads(300, strengths=SYSTEMS, seed=2)
    write_table(tmp_path / "battles.csv", rows)
    tiny_model().save_pretrained(tmp_path / "tiny")
    output = run(
        *("calibrate", tmp_path / "battles.csv", "--score", "musicality", "--score", "score_likes"),
        *("--anchors", "0,20", "--test-size", 50, "--repeats", 2, "--bootstrap", 20),
        *("--output", tmp_path / "out", "--attach", tmp_path / "tiny"),
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    part = metrics["calibration"]
    for name in ("uncalibrated", "calibrated", "songs_only", "system_only"):
        assert {"n", "accuracy", "accuracy_ci95"} <= set(part[name]["overall"])
    assert [row["anchors"] for row in part["learning_curve"]] == [0, 20]
    assert "system only" in output
    head = RewardMix.from_dict(read_json(tmp_path / "out" / "preference.json"))
    assert set(head.weights) == {"musicality", "score_likes"}
    model = ApexReward.from_pretrained(tmp_path / "out" / "model")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert f"fitted to {metrics['n_decided']} decided votes of 300 battles" in card
    assert part["verdict"] in card
    assert f"Started from {tmp_path / 'tiny'}. Licences: " in card
    import torch

    song = torch.randn(1, 24_000) * 0.1
    scores = model(song, 24_000)
    reward = model.reward(song, 24_000, mix="preference")
    expected = sum(weight * scores[name] for name, weight in head.weights.items())
    torch.testing.assert_close(reward, expected)


def test_attaching_a_score_that_is_no_head_is_refused(table, tmp_path):
    output = run(
        *("calibrate", table, "--score", "s", "--bootstrap", 20),
        *("--output", tmp_path / "out", "--attach", "apex-tiny"),
        code=2,
    )
    assert "s is not a head of a model" in " ".join(output.split())


def test_leaderboard_writes_the_contract(table, tmp_path):
    run("leaderboard", table, "--score", "s", "--bootstrap", 20, "--output", tmp_path / "out")
    board = read_table(tmp_path / "out" / "leaderboard.csv")
    assert board.column_names == ["system", "score", "lower", "upper", "battles", "component"]
    assert board["system"].to_pylist() == ["three", "two", "one"]
    assert np.mean(board["score"].to_pylist()) == pytest.approx(1000)


def test_score_then_evaluate(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "tiny")
    rows = []
    for number in range(6):
        for side in "ab":
            write_wav(
                tmp_path / "audio" / f"{number}{side}.wav", 0.4, seed=number + 10 * (side == "b")
            )
        rows.append(
            {
                "battle_uuid": str(number),
                "preference": "AB"[number % 2],
                "audio_a": f"{number}a.wav",
                "audio_b": f"{number}b.wav",
            }
        )
    rows[5]["audio_b"] = "gone.wav"
    write_table(tmp_path / "battles.jsonl", rows)
    arguments = (
        *("score", tmp_path / "battles.jsonl", "--audio-dir", tmp_path / "audio"),
        *("--model", tmp_path / "tiny", "--workers", 0, "--device", "cpu"),
    )
    output = run(*arguments, "--output", tmp_path / "scored.csv", code=1)
    assert "6 battles, 12 songs" in output
    assert "gone.wav" in output
    scored = read_table(tmp_path / "scored.csv")
    assert {"clarity_a", "score_likes_b", "error_a", "error_b"} <= set(scored.column_names)
    first = (tmp_path / "scored.csv").read_bytes()
    # Without --audio-dir the songs lie beside the battles.
    write_table(tmp_path / "audio" / "battles.jsonl", rows)
    run(
        *("score", tmp_path / "audio" / "battles.jsonl", "--model", tmp_path / "tiny"),
        *("--workers", 0, "--device", "cpu", "--output", tmp_path / "beside.csv"),
        code=1,
    )
    assert (tmp_path / "beside.csv").read_bytes() == first
    run(*arguments, "--output", tmp_path / "scored.csv", "--resume", code=1)
    assert (tmp_path / "scored.csv").read_bytes() == first
    run("evaluate", tmp_path / "scored.csv", "--bootstrap", 20, "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(metrics["scores"]) == 7
    assert metrics["dropped"]["missing_score"] == 1


@pytest.mark.parametrize("command", ["", "score", "evaluate", "calibrate", "leaderboard"])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys; from apex_reward.cli import app\n"
        f"try: app({['arena', *([command] if command else []), '--help']!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sklearn', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
