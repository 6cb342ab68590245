import json
import math

import numpy as np
import pytest

from apex_reward.arena.battles import battles_of
from apex_reward.arena.calibration import calibrate, design_of, fit_calibration, learning_curve
from apex_reward.arena.sources import load_battles
from apex_reward.errors import DataError, UsageError
from apex_reward.scores.mix import RewardMix
from tests.arena.simulate import simulate_battles

SYSTEMS = {"one": -1.0, "two": -0.3, "three": 0.3, "four": 1.0}


def decided(rows):
    battles = battles_of(rows)
    return battles.select(battles.decided)


def test_a_known_signal_s_weights_are_recovered():
    slopes = {"s": 0.8, "t": -0.4, "noise": 0.0}
    battles = battles_of(simulate_battles(4000, slopes=slopes, strengths=SYSTEMS, seed=1))
    result, head, _ = calibrate(battles, list(slopes), bootstrap=50)
    metrics = result
    for name, slope in slopes.items():
        assert head.weights[name] == pytest.approx(slope, abs=0.1)
    assert sum(metrics["calibration"]["bias"].values()) == pytest.approx(0, abs=1e-9)
    for system, strength in SYSTEMS.items():
        assert metrics["calibration"]["bias"][system] == pytest.approx(strength, abs=0.15)
    assert metrics["calibration"]["adds_to_systems"] is True
    assert "The score adds to what the systems alone tell" in metrics["calibration"]["verdict"]
    assert RewardMix.from_dict(json.loads(json.dumps(head.to_dict()))) == head


def test_systems_are_not_credited_to_a_score_that_follows_them():
    rows = simulate_battles(
        2000, slopes={"s": 0.0}, strengths=SYSTEMS, score_follows_system=1.0, seed=2
    )
    result, head, _ = calibrate(battles_of(rows), ["s"], bootstrap=50)
    metrics = result
    part = metrics["calibration"]
    assert part["uncalibrated"]["overall"]["direction"] == "agrees"  # confounded
    assert abs(head.weights["s"]) < 0.1  # and the head sees through it
    assert part["adds_to_systems"] is False
    assert "do not tell the calibrated score from the systems alone" in part["verdict"]
    gap = part["calibrated"]["overall"]["accuracy"] - part["system_only"]["overall"]["accuracy"]
    assert abs(gap) < 0.02


def test_embedding_weights_are_recovered_and_missing_embeddings_counted():
    rng = np.random.default_rng(0)
    weights = np.array([1.0, -0.5, 0.0, 0.0])
    vectors = rng.normal(size=(3000, 2, 4))
    logit = (vectors[:, 0] - vectors[:, 1]) @ weights
    won = rng.random(3000) < 1 / (1 + np.exp(-logit))
    rows = [
        {"battle_uuid": str(n), "preference": "A" if w else "B", "s_a": 0.1 * n % 7, "s_b": 1.0}
        for n, w in enumerate(won)
    ]
    vectors[0, 1] = np.nan
    result, head, _ = calibrate(battles_of(rows), ["s"], embeddings=vectors, bootstrap=20)
    metrics = result
    assert head.embedding_weights == pytest.approx(weights, abs=0.12)
    assert metrics["dropped"]["missing_embedding"] == 1
    assert metrics["calibration"]["calibrated"]["overall"]["accuracy"] > 0.65
    assert "system_only" not in metrics["calibration"]
    assert "No systems are named" in metrics["calibration"]["verdict"]


def test_swapping_the_sides_of_every_battle_changes_nothing():
    rows = simulate_battles(300, slopes={"s": 0.5}, strengths=SYSTEMS, seed=4)
    turned = [
        {
            **row,
            "preference": {"A": "B", "B": "A"}[row["preference"]],
            "s_a": row["s_b"],
            "s_b": row["s_a"],
            "system_a": row["system_b"],
            "system_b": row["system_a"],
        }
        for row in rows
    ]
    fits = [fit_calibration(design_of(decided(each), ["s"])) for each in (rows, turned)]
    assert fits[0].slopes["s"] == pytest.approx(fits[1].slopes["s"], abs=1e-9)
    assert fits[0].biases == pytest.approx(fits[1].biases, abs=1e-9)
    design = design_of(decided(rows), ["s"])
    mirrored = design_of(decided(turned), ["s"])
    np.testing.assert_allclose(fits[0].logit(design), -fits[0].logit(mirrored), atol=1e-12)


def test_figures_are_held_out():
    # as many systems as battles allow to memorise: in-sample the biases look perfect
    rng = np.random.default_rng(0)
    rows = [
        {
            "preference": "A" if rng.random() < 0.5 else "B",
            "system_a": f"a{n}",
            "system_b": f"b{n}",
            "s_a": rng.normal(),
            "s_b": rng.normal(),
        }
        for n in range(80)
    ]
    result, _, design = calibrate(battles_of(rows), ["s"], bootstrap=50)
    metrics = result
    fitted = fit_calibration(design, l2=0.1)
    assert np.mean((fitted.logit(design) > 0) == (design.label > 0)) > 0.95
    low, high = metrics["calibration"]["calibrated"]["overall"]["accuracy_ci95"]
    assert low < 0.5 < high


def test_folds_are_grouped_by_prompt_where_prompts_are_given():
    rows = simulate_battles(200, slopes={"s": 0.5}, prompts=20, seed=1)
    result, _, _ = calibrate(battles_of(rows), ["s"], bootstrap=10)
    metrics = result
    assert metrics["calibration"]["grouped_by"] == "prompt"
    for row in rows:
        row["prompt"] = None
    result, _, _ = calibrate(battles_of(rows), ["s"], bootstrap=10)
    metrics = result
    assert metrics["calibration"]["grouped_by"] == "battle"
    for row in rows:
        row["prompt"] = "one"
    with pytest.raises(DataError, match="at least two groups"):
        calibrate(battles_of(rows), ["s"], bootstrap=10)


def test_no_battle_with_the_score_is_refused():
    rows = [{"preference": "A", "s_a": None, "s_b": 1.0}, {"preference": "B", "s_a": 1.0}]
    with pytest.raises(DataError, match="no decided battle has all of s"):
        calibrate(battles_of(rows, scores=["s"]), ["s"])


def test_learning_curve_starts_uncalibrated_and_learns_the_systems():
    strong = {name: 2.5 * strength for name, strength in SYSTEMS.items()}
    rows = simulate_battles(900, slopes={"s": 0.2}, strengths=strong, seed=3)
    design = design_of(decided(rows), ["s"])
    curve = learning_curve(design, anchors=[0, 20, 400], test_size=300, repeats=4, seed=1)
    none, few, many = curve
    assert none["calibrated"] == none["uncalibrated"]
    assert none["system_only"]["accuracy"] == 0.5
    assert few["calibrated"]["accuracy"] < many["calibrated"]["accuracy"]
    assert many["calibrated"]["accuracy"] > many["uncalibrated"]["accuracy"] + 0.1
    values = many["calibrated"]["repeats"]
    assert len(set(values)) > 1
    assert many["calibrated"]["accuracy"] == pytest.approx(np.mean(values))
    assert many["calibrated"]["std"] == pytest.approx(np.std(values, ddof=1))
    again = learning_curve(design, anchors=[0, 20, 400], test_size=300, repeats=4, seed=1)
    assert curve == again
    other = learning_curve(design, anchors=[0], test_size=300, repeats=4, seed=2)
    assert other[0]["uncalibrated"] != none["uncalibrated"]


def test_anchors_never_share_a_prompt_with_the_test_battles(monkeypatch):
    design = design_of(decided(simulate_battles(300, slopes={"s": 0.5}, prompts=60, seed=3)), ["s"])
    seen = []
    monkeypatch.setattr(
        "apex_reward.arena.calibration._accuracies",
        lambda anchors, test, seed: (
            seen.append((anchors, test))
            or dict.fromkeys(("uncalibrated", "calibrated", "system_only"), 0.5)
        ),
    )
    learning_curve(design, anchors=[30], test_size=40, repeats=3)
    for anchors, test in seen:
        assert len(anchors.label) == 30
        assert len(test.label) == 40
        assert not set(anchors.groups) & set(test.groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"anchors": [50], "test_size": 60, "repeats": 1},
            "50 anchors are more than the 40",
        ),
        ({"anchors": [-1], "test_size": 6, "repeats": 1}, "expected numbers of votes"),
        ({"anchors": [0], "test_size": 101, "repeats": 1}, "lower --anchors or --test-size"),
    ],
)
def test_impossible_curves_are_refused(options, message):
    design = design_of(decided(simulate_battles(100, slopes={"s": 0.5})), ["s"])
    with pytest.raises(UsageError, match=message):
        learning_curve(design, **options)


def test_a_curve_with_too_few_fresh_prompts_is_refused():
    design = design_of(decided(simulate_battles(100, slopes={"s": 0.5}, prompts=4)), ["s"])
    with pytest.raises(UsageError, match="lower --anchors or --test-size"):
        learning_curve(design, anchors=[50], test_size=40, repeats=1)


def test_the_real_battles_gain_from_anchors_and_the_systems_explain_it(shared_folder):
    path = shared_folder / "battles" / "music_arena_2026_feb_mar_apr.csv"
    result, _, design = calibrate(load_battles(path, scores=["tj"]), ["tj"], bootstrap=200)
    metrics = result
    curve = learning_curve(design, anchors=[0, 250], test_size=299, repeats=5)
    assert curve[1]["calibrated"]["accuracy"] > curve[1]["uncalibrated"]["accuracy"]
    assert curve[1]["calibrated"]["accuracy"] == pytest.approx(0.62, abs=0.03)
    assert not math.isnan(curve[1]["system_only"]["accuracy"])
    assert metrics["calibration"]["adds_to_systems"] is False
