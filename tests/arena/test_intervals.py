import math

import numpy as np
import pytest
from scipy import stats

from apex_reward.arena import battles_of, evaluate_battles
from apex_reward.arena.findings import findings
from apex_reward.arena.intervals import (
    DIRECTION_LEVEL,
    DIRECTION_MIN,
    accuracy_interval,
    auc_interval,
    direction,
    hull,
    pairwise_error,
    rank_test,
)
from apex_reward.arena.results import to_json
from apex_reward.metrics import auc


def test_three_battles_with_one_right_claim_nothing():
    rows = [
        {"preference": "A", "s_a": a, "s_b": 0.0}
        if won
        else {"preference": "B", "s_a": a, "s_b": 0}
        for won, a in ((True, -1.0), (False, 2.0), (True, 3.0))
    ]
    rows[1]["s_a"] = 1.0
    result = evaluate_battles(battles_of(rows), bootstrap=100)
    metrics = to_json(result)
    overall = metrics["scores"]["s"]["overall"]
    assert overall["direction"] == "undetermined"
    # 1 of 3 right: a beta quantile of either side, by scipy's exact binomial interval
    exact = stats.binomtest(1, 3).proportion_ci(method="exact")
    assert overall["accuracy_ci95"] == pytest.approx([exact.low, exact.high], abs=1e-12)
    assert overall["auc"] == 0.5
    assert overall["auc_ci95"][1] - overall["auc_ci95"][0] > 0.8
    assert "do not tell whether s agrees" in findings(result)[0].text


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 5), (4, 7), (430, 799)])
def test_accuracy_interval_is_clopper_and_pearson_s(right, n):
    difference = np.where(np.arange(n) < right, 1.0, -1.0)
    exact = stats.binomtest(right, n).proportion_ci(method="exact")
    interval = accuracy_interval(difference, np.ones(n, dtype=bool))
    assert interval == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_ties_count_as_wrong_below_and_as_right_above():
    # 2 right, 1 tied, 1 wrong of 4: from the lower end of 2 of 4 to the upper end of 3 of 4
    difference = np.array([1.0, 1.0, 0.0, -1.0])
    low, high = accuracy_interval(difference, np.ones(4, dtype=bool))
    assert low == pytest.approx(stats.binomtest(2, 4).proportion_ci(method="exact").low)
    assert high == pytest.approx(stats.binomtest(3, 4).proportion_ci(method="exact").high)
    assert all(map(math.isnan, accuracy_interval([], [])))


@pytest.mark.parametrize(("value", "won", "lost"), [(0.7, 12, 9), (1.0, 4, 4), (0.0, 3, 7)])
def test_auc_interval_ends_one_standard_error_of_its_own_away(value, won, lost):
    interval = auc_interval(value, won, lost)
    assert interval[0] < interval[1]
    for end in interval:
        if end not in (0.0, 1.0):
            extra = (won + lost) / 2 - 1
            spread = 1 + extra * ((1 - end) / (2 - end) + end / (1 + end))
            error = math.sqrt(end * (1 - end) * spread / (won * lost))
            assert abs(value - end) == pytest.approx(stats.norm.ppf(0.975) * error, abs=1e-9)
    mirrored = auc_interval(1 - value, won, lost)
    assert mirrored == pytest.approx((1 - interval[1], 1 - interval[0]), abs=1e-9)


def test_an_auc_interval_touches_one_half_where_the_rank_test_does():
    # at 0.5 the variance is Mann and Whitney's, (n + 1) / (12 * won * lost)
    error = math.sqrt(31 / (12 * 18 * 12))
    touching = 0.5 + stats.norm.ppf(0.975) * error
    assert auc_interval(touching, 18, 12)[0] == pytest.approx(0.5, abs=1e-9)
    assert all(map(math.isnan, auc_interval(math.nan, 3, 0)))


def test_rank_test_is_exact_for_few_and_has_no_faith_in_ties():
    assert rank_test([3.0, 4.0, 5.0, 1.0, 2.0], [1, 1, 1, 0, 0]) == pytest.approx(2 / 10)
    assert rank_test([1.0, 1.0, 1.0], [1, 0, 1]) == 1.0
    assert rank_test([1.0, 2.0], [1, 1]) == 1.0
    # one of ten stands out and is the only winner: one order in ten, the normal curve says 0.8%
    one = np.array([1.0] + [0.0] * 9)
    assert rank_test(one, one > 0) == pytest.approx(0.1, abs=0.02)
    values, won = np.arange(60.0) % 7, np.arange(60) % 3 == 0
    expected = stats.mannwhitneyu(values[won], values[~won]).pvalue
    assert rank_test(values, won) == expected


def test_with_ties_orders_are_drawn_up_to_eight_of_a_side():
    """Nine of a side have the normal curve; eight the share of drawn orders that go as far."""
    for few, drawn in ((8, True), (9, False)):
        values, won = np.arange(2 * few) % 7, np.arange(2 * few) % 2 == 0
        expected = stats.mannwhitneyu(values[won], values[~won]).pvalue
        assert (rank_test(values, won) != expected) == drawn
    values, won = np.array([0.0] * 8 + [1.0] * 8), np.arange(16) >= 8
    # Of 12,870 orders two are as far: of 1,999 that are drawn hardly any.
    assert 1 / 2000 <= rank_test(values, won) <= 4 / 2000


def test_a_direction_needs_battles_an_interval_and_the_test():
    assert direction(40, (0.51, 0.6), 0.01) == "agrees"
    assert direction(40, (0.4, 0.49), 0.01) == "opposes"
    assert direction(DIRECTION_MIN - 1, (0.51, 0.6), 0.001) == "undetermined"
    assert direction(40, (0.51, 0.6), 0.03) == "undetermined"
    assert direction(40, (0.5, 0.6), 0.01) == "undetermined"
    assert direction(40, (math.nan, math.nan), 0.01) == "undetermined"
    assert direction(40, (0.4, 0.5), 0.01) == "undetermined"
    assert (DIRECTION_MIN, DIRECTION_LEVEL) == (10, 0.025)
    assert direction(10, (0.51, 0.6), 0.025) == "agrees"


def test_hull_and_the_error_within_pairs_by_hand():
    assert hull((0.2, 0.5), (math.nan, math.nan), (0.3, 0.8)) == (0.2, 0.8)
    assert all(map(math.isnan, hull((math.nan, math.nan))))
    # strata of 1 against 1 and 2 against 3: sqrt((1 * 3 + 6 * 6) / 12) / 7
    error = pairwise_error(np.array([1, 2, 4]), np.array([1, 3, 0]))
    assert error == pytest.approx(math.sqrt(39 / 12) / 7)
    assert math.isnan(pairwise_error(np.array([3]), np.array([0])))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [3, 8, 10, 11, 13, 17, 25, 50, 100, 200])
def test_at_most_one_noise_set_in_twenty_claims_a_direction(n, ties):
    rng = np.random.default_rng([n, ties])
    claimed = 0
    for _ in range(1000):
        difference = rng.integers(-2, 3, n).astype(float) if ties else rng.normal(size=n)
        won = rng.random(n) < 0.5
        interval = auc_interval(auc(difference, won), int(won.sum()), int((~won).sum()))
        if n >= DIRECTION_MIN and not interval[0] <= 0.5 <= interval[1]:
            claimed += direction(n, interval, rank_test(difference, won)) != "undetermined"
    assert claimed <= 50
    assert (claimed > 0) == (n >= DIRECTION_MIN)


def test_a_strong_score_is_claimed_from_few_battles():
    won = np.arange(10) % 2 == 0
    difference = np.where(won, 1.0, -1.0) * np.arange(1, 11)
    interval = auc_interval(auc(difference, won), 5, 5)
    assert direction(10, interval, rank_test(difference, won)) == "agrees"


def test_votes_that_repeat_one_prompt_claim_nothing():
    # five prompts heard by forty people each: forty votes are one observation
    rows = [
        {"preference": "AB"[prompt % 2], "prompt": f"p{prompt}", "s_a": value, "s_b": 0.0}
        for prompt, value in enumerate((1.0, -0.5, 0.8, 0.9, 0.1))
        for _ in range(40)
    ]
    overall = to_json(evaluate_battles(battles_of(rows), bootstrap=300))["scores"]["s"]["overall"]
    assert overall["auc_ci95"][0] > 0.5
    assert overall["auc_ci95_by_prompt"][0] < 0.5
    assert overall["direction"] == "undetermined"


@pytest.mark.slow
def test_intervals_hold_one_half_in_at_least_94_of_100_noise_sets_at_every_size():
    for n in (5, 12, 40, 400):
        held = np.zeros(2)
        for seed in range(1000):
            rng = np.random.default_rng([n, seed])
            difference, won = rng.normal(size=n), rng.random(n) < 0.5
            value = auc(difference, won)
            if math.isnan(value):
                held += 1
                continue
            pair = (
                accuracy_interval(difference, won),
                auc_interval(value, int(won.sum()), int((~won).sum())),
            )
            held += [low <= 0.5 <= high for low, high in pair]
        assert (held >= 935).all(), (n, held)
