import json
import math

import numpy as np
import pytest

from apex_reward.arena.agreement import disagreements, evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.arena.figures import mcnemar
from apex_reward.arena.sources import load_battles
from apex_reward.errors import DataError
from tests.arena.rows import words_of
from tests.arena.simulate import simulate_battles

SYSTEMS = {"one": -1.5, "two": -0.5, "three": 0.5, "four": 1.5}


def votes(pairs, **columns):
    return [
        {
            "preference": vote,
            "s_a": a,
            "s_b": b,
            **{key: column[n] for key, column in columns.items()},
        }
        for n, (vote, a, b) in enumerate(pairs)
    ]


HAND = [
    ("A", 2.0, 1.0),  # right, difference 1
    ("A", 1.0, 3.0),  # wrong, -2
    ("B", 0.0, 0.5),  # right, -0.5
    ("B", 1.0, 1.0),  # tie, 0
    ("A", 5.0, 1.0),  # right, 4
]


def test_figures_worked_out_by_hand():
    rows = [*votes(HAND), {"preference": "TIE"}, {"preference": "BOTH_BAD"}, {"preference": "A"}]
    result = evaluate_battles(battles_of(rows), bootstrap=50)
    metrics = result
    overall = metrics["scores"]["s"]["overall"]
    assert metrics["n_battles"] == 8
    assert metrics["n_decided"] == 6
    assert metrics["dropped"] == {"TIE": 1, "BOTH_BAD": 1, "missing_score": 1}
    assert overall["n"] == 5
    assert overall["accuracy"] == pytest.approx(3.5 / 5)
    # differences of A's wins 1, -2, 4 against B's -0.5, 0: four of six comparisons won
    assert overall["auc"] == pytest.approx(4 / 6)
    assert overall["p_value"] == pytest.approx(2 * (1 + 4) / 16)  # 3 of 4 untied
    assert metrics["baselines"]["position_a"]["accuracy"] == pytest.approx(4 / 6)
    assert metrics["baselines"]["system_only"] == {"n": 0, "accuracy": None, "accuracy_ci95": None}
    json.dumps(metrics, allow_nan=False)


def test_strata_hold_their_battles_and_unknown_ones_count_overall_only():
    rows = votes(
        HAND,
        is_instrumental=[True, "false", None, "yes", False],
        date=["2026-01-02", "2026-02-02", "2026-02-03", "2026-02-04", None],
        system_a=["x", "y", "x", "z", "x"],
        system_b=["y", "x", "z", "y", ""],
    )
    strata = evaluate_battles(battles_of(rows), bootstrap=20)["scores"]["s"]
    assert {name: entry["n"] for name, entry in strata.items()} == {
        "overall": 5,
        "instrumental": 2,
        "vocal": 2,
        "month:2026-01": 1,
        "month:2026-02": 3,
        "system_pair:x vs y": 2,
        "system_pair:x vs z": 1,
        "system_pair:y vs z": 1,
    }
    assert strata["instrumental"]["accuracy"] == 0.75  # one right, one tie
    assert strata["system_pair:x vs y"]["accuracy"] == 0.5
    assert strata["month:2026-01"]["auc"] is None
    # Claims are of the main strata only.
    claimed = {name for name, entry in strata.items() if "direction" in entry}
    assert claimed == {name for name, entry in strata.items() if "direction_p" in entry}
    assert claimed == {"overall", "instrumental", "vocal"}


def test_a_negated_score_is_the_mirror_image_with_the_opposite_direction():
    rows = simulate_battles(600, slopes={"s": 0.8}, prompts=200, seed=3)
    for row in rows:
        row["minus_a"], row["minus_b"] = -row["s_a"], -row["s_b"]
    scores = evaluate_battles(battles_of(rows), bootstrap=300, seed=1)["scores"]
    plus, minus = scores["s"]["overall"], scores["minus"]["overall"]
    assert (plus["direction"], minus["direction"]) == ("agrees", "opposes")
    assert minus["accuracy"] == pytest.approx(1 - plus["accuracy"], abs=1e-12)
    assert minus["auc"] == pytest.approx(1 - plus["auc"], abs=1e-12)
    assert minus["p_value"] == plus["p_value"]
    for key in ("accuracy_ci95", "auc_ci95", "accuracy_ci95_by_prompt", "auc_ci95_by_prompt"):
        assert minus[key] == pytest.approx([1 - bound for bound in plus[key][::-1]], abs=1e-12)


def test_a_known_signal_is_recovered():
    result = evaluate_battles(
        battles_of(simulate_battles(4000, slopes={"s": 0.7}, seed=5)), bootstrap=200
    )
    metrics = result
    overall = metrics["scores"]["s"]["overall"]
    # E[sigmoid(0.7 |d|)] with d ~ N(0, 2), by quadrature
    d = np.linspace(0, 12, 40001)
    density = 2 * np.exp(-(d**2) / 4) / math.sqrt(4 * math.pi)
    expected = np.trapezoid(density / (1 + np.exp(-0.7 * d)), d)
    low, high = overall["accuracy_ci95"]
    assert low < expected < high
    assert overall["ece"] < 0.03
    assert overall["direction"] == "agrees"


def test_a_score_that_only_knows_systems_is_exposed():
    rows = simulate_battles(1500, slopes={"noise": 0.0}, strengths=SYSTEMS, seed=2)
    for row in rows:
        row["name_a"], row["name_b"] = SYSTEMS[row["system_a"]], SYSTEMS[row["system_b"]]
    result = evaluate_battles(battles_of(rows), bootstrap=200)
    metrics = result
    name = metrics["scores"]["name"]["overall"]
    system_only = metrics["baselines"]["system_only"]
    assert name["direction"] == "agrees"
    assert name["accuracy"] > 0.7
    assert system_only["accuracy"] == pytest.approx(name["accuracy"], abs=0.01)
    assert name["auc_within_system_pairs"] == 0.5
    words = " ".join(text for tone, text in words_of(result) if tone == "warning")
    assert "telling systems apart, not songs" in words
    assert "Worse than that: noise (right alone on" in words
    assert "name (right alone" not in words  # it says what the systems say


def test_the_system_baseline_is_held_out():
    # a pair of systems of its own for every battle: in-sample their strengths know every vote
    rng = np.random.default_rng(0)
    rows = [
        {
            **{"preference": "AB"[rng.integers(2)], "system_a": f"a{n}", "system_b": f"b{n}"},
            **{"s_a": rng.normal(), "s_b": 0.0},
        }
        for n in range(60)
    ]
    result = evaluate_battles(battles_of(rows), bootstrap=20)
    metrics = result
    assert metrics["baselines"]["system_only"]["accuracy"] == 0.5  # unseen systems: all ties


def test_a_score_that_knows_songs_is_credited_within_system_pairs():
    rows = simulate_battles(1500, slopes={"s": 1.0}, strengths=SYSTEMS, seed=2)
    result = evaluate_battles(battles_of(rows), bootstrap=200)
    metrics = result
    low, high = metrics["scores"]["s"]["overall"]["auc_within_system_pairs_ci95"]
    assert 0.6 < low < high < 0.9
    assert any("it tells songs apart" in text for _, text in words_of(result))


def test_prompt_clusters_widen_the_interval_when_votes_repeat():
    # every battle copied four times under one prompt: the same knowledge, four times the rows
    rows = [
        {**row, "battle_uuid": f"{row['battle_uuid']}-{copy}"}
        for row in simulate_battles(100, slopes={"s": 0.5}, seed=4)
        for copy in range(4)
    ]
    overall = evaluate_battles(battles_of(rows), bootstrap=500)["scores"]["s"]["overall"]
    plain = np.ptp(overall["accuracy_ci95"])
    clustered = np.ptp(overall["accuracy_ci95_by_prompt"])
    assert clustered == pytest.approx(2 * plain, rel=0.2)


def test_missing_scores_count_for_their_own_score_only():
    rows = votes(HAND)
    for row, value in zip(rows, [1.0, None, 2.0, 3.0, None], strict=True):
        row["t_a"], row["t_b"] = value, 0.5
    result = evaluate_battles(battles_of(rows), bootstrap=20)
    metrics = result
    assert metrics["scores"]["s"]["overall"]["n"] == 5
    assert metrics["scores"]["t"]["overall"]["n"] == 3
    assert metrics["dropped"]["missing_score"] == 2
    assert metrics["mcnemar"]["s vs t"]["n"] == 3


def test_mcnemar_by_hand():
    rows = [
        {"preference": "A", "s_a": s, "s_b": 0.0, "t_a": t, "t_b": 0.0}
        for s, t in [(1, -1), (1, -1), (1, -1), (-1, 1), (1, 1), (-1, -1), (1, 0)]
    ]
    battles = battles_of(rows)
    result = mcnemar(battles.difference("s"), battles.difference("t"), battles.a_won)
    assert result == {"n": 7, "only_first": 4, "only_second": 1, "p_value": 2 * (1 + 5) / 32}


def test_mcnemar_of_scores_that_agree_on_every_battle_has_p_1():
    battles = battles_of(votes([("A", 1.0, 0.0), ("B", 1.0, 0.0)] * 8))
    result = mcnemar(battles.difference("s"), battles.difference("s"), battles.a_won)
    assert result == {"n": 16, "only_first": 0, "only_second": 0, "p_value": 1.0}


def test_the_battles_that_differ_most_come_first():
    pairs = [("A", 1.0, 3.0), ("B", 5.0, 2.0), ("A", 4.0, 1.0), ("B", 2.0, 1.0), ("B", 0.0, 9.0)]
    worst = [
        one["score_a"] - one["score_b"] for one in disagreements(battles_of(votes(pairs)), "s")
    ]
    assert worst == [3.0, -2.0, 1.0]  # the others agree with the vote


def test_one_class_only_is_said():
    result = evaluate_battles(battles_of(votes([("A", 1.0, 0.0), ("A", 0.0, 1.0)])), bootstrap=20)
    metrics = result
    overall = metrics["scores"]["s"]["overall"]
    assert overall["auc"] is None
    assert overall["auc_ci95"] is None
    assert overall["direction"] == "undetermined"
    assert "every decided battle went to A" in metrics["notes"][0]
    assert "its AUC is not defined" in words_of(result)[0][1]


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(DataError, match=r"none of the 2 battles was decided"):
        evaluate_battles(battles_of([{"preference": "TIE"}, {"preference": "BOTH_BAD"}]))
    with pytest.raises(DataError, match="no decided battle has a score"):
        evaluate_battles(battles_of([{"preference": "A", "s_a": 1.0}]))


def test_same_seed_same_figures_another_seed_other_intervals():
    battles = battles_of(simulate_battles(200, slopes={"s": 0.5}, seed=1))
    first, again, other = (
        evaluate_battles(battles, bootstrap=100, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    by_prompt = [m["scores"]["s"]["overall"]["auc_ci95_by_prompt"] for m in (first, other)]
    assert by_prompt[0] != by_prompt[1]


@pytest.mark.filterwarnings("error")
def test_the_real_battles_give_the_known_answers(shared_folder):
    path = shared_folder / "battles" / "music_arena_2026_feb_mar_apr.csv"
    result = evaluate_battles(load_battles(path, scores=["tj"]))
    metrics = result
    overall = metrics["scores"]["tj"]["overall"]
    assert overall["accuracy"] == pytest.approx(0.5369211514, abs=1e-9)
    assert overall["auc"] == pytest.approx(0.5515320334, abs=1e-9)
    # scipy.stats.binomtest(429, 799).proportion_ci(method="exact"); Newcombe's by bisection
    assert overall["accuracy_ci95"] == pytest.approx([0.5016385053, 0.5719304457], abs=1e-9)
    assert overall["auc_ci95"] == pytest.approx([0.5112794373, 0.5909790589], abs=1e-9)
    assert (metrics["n_battles"], metrics["n_decided"]) == (799, 799)
    assert overall["direction"] == "agrees"
