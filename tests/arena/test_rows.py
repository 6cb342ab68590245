"""The order of rows changes no figure, and noise makes few claims."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.arena.calibration import calibrate, learning_curve
from apex_reward.arena.leaderboard import leaderboards
from apex_reward.arena.protocol import run_protocol
from apex_reward.arena.voters import voter_agreement
from apex_reward.cli import app
from apex_reward.files.tables import write_table
from tests.arena.rows import shuffled, words_of
from tests.arena.simulate import simulate_battles, simulate_heads

SYSTEMS = {"one": -1.0, "two": 0.0, "three": 1.0}


def messy(n=240, seed=1):
    """Battles with everything that figures may depend on: ties, repeats, spellings, odd cells."""
    rows = simulate_battles(
        n, slopes={"s": 0.8, "t": 0.0, "rulers.length": 0.3}, strengths=SYSTEMS, prompts=70,
        undecided=0.1, seed=seed,
    )  # fmt: skip
    for place, row in enumerate(rows):
        row["s_a"], row["s_b"] = round(row["s_a"]), round(row["s_b"])
        row |= {"comparison": f"c{place // 3}", "voter": ("ann", "bob")[place % 2],
                "language": ("en", "sw", "")[place % 3], "audio_a": f"{place}.wav"}  # fmt: skip
        if place % 10 == 0:
            row["system_a"] = row["system_a"].upper()
    rows[5]["t_a"], rows[6]["preference"], rows[7]["date"] = "soon", "left", "2099-01-01"
    rows[8]["battle_uuid"] = rows[9]["battle_uuid"]
    return rows


def without_ids(rows):
    return [{key: cell for key, cell in row.items() if key != "battle_uuid"} for row in rows]


@pytest.mark.parametrize("ids", [True, False])
def test_the_order_of_rows_changes_no_figure(ids):
    rows = messy(120) if ids else without_ids(messy(120))
    heads = simulate_heads(90, prompts=40, seed=1)
    found = []
    for order in (rows, shuffled(rows, 1)):
        battles = battles_of(order, by=["language"])
        result, head, design = calibrate(battles_of(order), ["s"], bootstrap=20)
        found.append(
            {
                "evaluate": evaluate_battles(battles, bootstrap=30),
                "words": words_of(evaluate_battles(battles, bootstrap=30)),
                "voters": voter_agreement(order),
                "calibrate": result,
                "head": head.to_dict(),
                "curve": learning_curve(design, anchors=[20], test_size=40, repeats=1),
                "leaderboard": leaderboards(battles, ["s"], bootstrap=20),
            }
        )
    assert json.dumps(found[0]) == json.dumps(found[1])
    honest = [run_protocol(battles_of(order), classifiers=["LR"])["honest"]
              for order in (heads, shuffled(heads, 3))]  # fmt: skip
    assert honest[0] == honest[1]


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "leaderboard"])
def test_the_order_of_a_file_s_rows_changes_no_figure(tmp_path, command):
    rows = messy(120)
    found = []
    for name, order in (("one", rows), ("two", shuffled(rows, 2))):
        write_table(tmp_path / name / "battles.jsonl", order)
        out = tmp_path / name / "out"
        arguments = ["arena", command, str(tmp_path / name / "battles.jsonl"), "--score", "s",
                     "--bootstrap", "20", "--output", str(out)]  # fmt: skip
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        found.append(
            {path.name: path.read_text() for path in out.iterdir() if path.suffix != ".html"}
        )
    assert found[0] == found[1]


def claims(metrics):
    """Whether anything is claimed of the scores."""
    directions = [
        strata[name]["direction"] != "undetermined"
        for strata in metrics["scores"].values()
        for name in ("overall", "instrumental", "vocal")
    ]
    tests = [test["p_value"] < 0.05 for test in metrics["mcnemar"].values()]
    tones = [tone != "plain" for tone, _ in words_of(metrics)]
    return any(directions) or any(tests) or any(tones)


def noise(seed, scores=10, n=100):
    rng = np.random.default_rng([7, seed])
    values, won = rng.normal(size=(n, scores, 2)), rng.random(n) < 0.5
    return [
        {"battle_uuid": f"{k:03d}", "preference": "AB"[int(won[k])], "is_instrumental": k % 2 == 0,
         "prompt": f"p{k}",
         **{f"n{m}_{s}": float(values[k, m, c]) for m in range(scores)
            for c, s in enumerate("ab")}}
        for k in range(n)
    ]  # fmt: skip


@pytest.mark.slow
def test_ten_scores_of_noise_make_few_claims(monkeypatch):
    """200 tables: at most 18 claim anything of any score, by direction, test or words."""
    # What calibration errors are made of claims nothing, and takes most of the time.
    monkeypatch.setattr(
        "apex_reward.arena.agreement.held_out_logit",
        lambda features, *_, **__: np.zeros(len(features)),
    )
    made = sum(claims(evaluate_battles(battles_of(noise(k)), bootstrap=200)) for k in range(200))
    assert 1 <= made <= 18


def test_one_prompt_claims_nothing():
    rows = simulate_battles(200, slopes={"s": 3.0}, prompts=1, seed=2)
    overall = evaluate_battles(battles_of(rows), bootstrap=50)["scores"]["s"]["overall"]
    assert overall["direction_p"] < 1e-6
    assert overall["direction"] == "undetermined"
    assert overall["accuracy_ci95_by_prompt"] is overall["auc_ci95_by_prompt"] is None


def test_no_two_battles_of_one_system_pair_have_no_figure_within_pairs():
    rows = [
        {
            "preference": "AB"[n % 2],
            "system_a": f"a{n}",
            "system_b": f"b{n}",
            "s_a": n % 3,
            "s_b": 1,
        }
        for n in range(40)
    ]
    metrics = evaluate_battles(battles_of(rows), bootstrap=20)
    overall = metrics["scores"]["s"]["overall"]
    assert overall["auc_within_system_pairs"] is None
    assert overall["auc_within_system_pairs_ci95"] is None
    assert not any("same two systems" in text for _, text in words_of(metrics))
