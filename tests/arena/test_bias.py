"""Rulers and groups, on votes whose cause is known."""

import numpy as np
import pytest

from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.errors import UsageError
from tests.arena.rows import words_of
from tests.arena.simulate import simulate_battles


def ruled(n=800, *, steps=False, seed=0, quality=0.0):
    """Votes by loudness, and by quality where it has a slope, with three scores.

    `loud` is loudness and noise, `truth` knows the votes' cause and half of their chance, `cubed`
    is a curved function of loudness.
    """
    rng = np.random.default_rng(seed)
    loudness, length, good, noise = rng.normal(size=(4, n, 2))
    lead = loudness[:, 0] - loudness[:, 1] + quality * (good[:, 0] - good[:, 1])
    chance = np.where(lead > 0, 0.8, 0.2) if steps else 1 / (1 + np.exp(-1.2 * lead))
    won = rng.random(n) < chance
    lucky = np.where(won, 0.5, -0.5)[:, None] * [1, -1]
    scores = {
        "rulers.loudness": loudness, "rulers.length": length, "loud": loudness + noise,
        "truth": loudness + good + lucky, "cubed": loudness**3 + 0.2 * noise,
    }  # fmt: skip
    return [
        {"battle_uuid": f"{k:04d}", "preference": "AB"[not won[k]], "prompt": f"p{k % 300}",
         **{f"{name}_{s}": float(v[k, c]) for name, v in scores.items()
            for c, s in enumerate("ab")}}
        for k in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [False, True])
def test_a_score_of_loudness_and_noise_has_nothing_left_and_one_that_knows_the_truth_has(steps):
    metrics = evaluate_battles(battles_of(ruled(steps=steps)), bootstrap=200)
    assert set(metrics["rulers"]) == {"loudness", "length"}
    assert metrics["best_ruler"] == "loudness"
    assert list(metrics["scores"]) == ["loud", "truth", "cubed"]
    loud, truth = (metrics["scores"][name] for name in ("loud", "truth"))
    assert loud["overall"]["direction"] == truth["overall"]["direction"] == "agrees"
    low, high = loud["after_rulers"]["auc_ci95"]
    assert low < 0.5 < high
    assert truth["after_rulers"]["auc_ci95"][0] > 0.6
    words = dict(
        text.split(" know", 1) for _, text in words_of(metrics) if "simple measures" in text
    )
    assert "nothing is left" in words["What loud"]
    assert "s more than simple measures" in words["truth"]
    against = metrics["versus_best_ruler"]["loud"]
    assert against["only_second"] > against["only_first"]
    assert against["p_value"] < 0.05
    assert any(
        "The best ruler is loudness. Worse than that: loud" in t for _, t in words_of(metrics)
    )


def test_a_curved_function_of_a_ruler_has_nothing_left():
    metrics = evaluate_battles(battles_of(ruled(2000)), bootstrap=200)
    low, high = metrics["scores"]["cubed"]["after_rulers"]["auc_ci95"]
    assert low < 0.5 < high


def test_a_score_of_quality_beside_loudness_keeps_what_it_knows():
    rows = ruled(quality=1.0)
    for row in rows:
        for side in "ab":  # the truth less its luck and loudness
            row[f"good_{side}"] = row[f"truth_{side}"] - row[f"rulers.loudness_{side}"]
    metrics = evaluate_battles(battles_of(rows, scores=["good"]), bootstrap=100)
    assert list(metrics["scores"]) == ["good"]  # rulers are read beside a named score
    assert metrics["scores"]["good"]["after_rulers"]["auc_ci95"][0] > 0.6


def test_without_rulers_nothing_is_reported_of_them():
    metrics = evaluate_battles(battles_of(simulate_battles(60, slopes={"s": 1.0})), bootstrap=10)
    assert not {"rulers", "best_ruler", "versus_best_ruler", "by"} & set(metrics)
    assert "after_rulers" not in metrics["scores"]["s"]


def grouped(gap, n=600, seed=0):
    """Votes that a score names rightly in 70%, in the second of two languages `gap` less."""
    rng = np.random.default_rng(seed)
    language = np.array(["en", "sw"])[(np.arange(n) % 3 == 0).astype(int)]
    right = rng.random(n) < np.where(language == "sw", 0.7 - gap, 0.7)
    difference = rng.normal(size=n)
    won = (difference > 0) == right
    return [
        {"battle_uuid": f"{k:04d}", "preference": "AB"[not won[k]], "s_a": difference[k],
         "s_b": 0.0, "t_a": -difference[k], "t_b": 0.0, "language": str(language[k]),
         "genre": "folk", "prompt": f"p{k}"}
        for k in range(n)
    ]  # fmt: skip


def test_groups_with_a_gap_are_named_and_equal_ones_are_not():
    metrics = evaluate_battles(battles_of(grouped(0.25), scores=["s"], by=["language", "genre"]))
    part = metrics["by"]["language"]
    assert {name: entry["n"] for name, entry in part["groups"].items()} == {"en": 400, "sw": 200}
    accuracies = [part["groups"][name]["accuracy"] for name in ("en", "sw")]
    assert part["gap"] == pytest.approx(accuracies[0] - accuracies[1])
    assert part["p_value"] < 0.001
    assert len(part["groups"]["sw"]["accuracy_ci95"]) == 2
    assert metrics["by"]["genre"]["p_value"] is None  # one group
    assert any("all values of language: right on" in text for _, text in words_of(metrics))
    even = evaluate_battles(battles_of(grouped(0.0), scores=["s"], by=["language"]), bootstrap=200)
    assert even["by"]["language"]["p_value"] > 0.05
    two = evaluate_battles(battles_of(grouped(0.25), by=["language"]), bootstrap=50)["by"]
    assert two["language"]["score"] == "s"
    assert set(two["language"]["others"]) == {"t"}
    with pytest.raises(UsageError, match="no column mood for --by; columns: battle_uuid"):
        battles_of(grouped(0.0), by=["mood"])


def test_groups_of_few_prompts_need_more_than_few_prompts_show():
    """Six prompts of 100 equal votes each: no test can tell languages of three prompts apart."""
    rows = grouped(0.25)
    for k, row in enumerate(rows):
        unit = k % 6
        row |= {"prompt": f"p{unit}", "language": "en" if unit < 3 else "sw", "s_b": 0.0,
                "s_a": 1.0 + k / 1e4, "preference": "AB"[unit in (2, 4, 5)]}  # fmt: skip
    part = evaluate_battles(battles_of(rows, scores=["s"], by=["language"]), bootstrap=200)["by"]
    assert part["language"]["gap"] == pytest.approx(1 / 3)
    assert part["language"]["p_value"] > 0.05


def test_groups_need_two_prompts_and_two_prompts_show_little():
    """Votes on one pair of songs agree; nothing follows for other songs of the language."""
    rows = grouped(0.0, n=120)
    right = {"en": (28, 16), "sw": (12, 4)}  # of 30 votes on each prompt
    for k, row in enumerate(rows):
        language, prompt, vote = ("en", "sw")[k // 60], k // 30 % 2, k % 30
        row |= {"prompt": f"{language}{prompt}", "language": language, "s_a": 1.0 + k / 1e4,
                "s_b": 0.0, "preference": "AB"[vote >= right[language][prompt]]}  # fmt: skip
    part = evaluate_battles(battles_of(rows, scores=["s"], by=["language", "prompt"]), bootstrap=99)
    assert part["by"]["language"]["gap"] == pytest.approx(28 / 60)
    assert part["by"]["language"]["p_value"] > 0.05
    assert part["by"]["prompt"]["gap"] == pytest.approx(24 / 30)
    assert part["by"]["prompt"]["p_value"] is None
