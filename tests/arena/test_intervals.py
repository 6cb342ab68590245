import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.arena.figures import DIRECTION_MIN, LEVEL, claim_directions
from apex_reward.arena.intervals import (
    PairedRounds,
    accuracy_interval,
    auc_interval,
    hull,
    pairwise_error,
    prompt_interval,
    rank_test,
)
from apex_reward.metrics import accuracy, auc, bootstrap, bootstrap_interval, percentile_interval
from tests.arena.rows import words_of


def test_three_battles_with_one_right_claim_nothing():
    rows = [
        {"preference": "A", "s_a": a, "s_b": 0.0}
        if won
        else {"preference": "B", "s_a": a, "s_b": 0}
        for won, a in ((True, -1.0), (False, 2.0), (True, 3.0))
    ]
    rows[1]["s_a"] = 1.0
    result = evaluate_battles(battles_of(rows), bootstrap=100)
    metrics = result
    overall = metrics["scores"]["s"]["overall"]
    assert overall["direction"] == "undetermined"
    # 1 of 3 right: a beta quantile of either side, by scipy's exact binomial interval
    exact = stats.binomtest(1, 3).proportion_ci(method="exact")
    assert overall["accuracy_ci95"] == pytest.approx([exact.low, exact.high], abs=1e-12)
    assert overall["auc"] == 0.5
    assert overall["auc_ci95"][1] - overall["auc_ci95"][0] > 0.8
    assert "Not enough votes to tell whether s agrees" in words_of(result)[0][1]


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
    assert accuracy_interval([], []) is None


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
    assert auc_interval(math.nan, 3, 0) is None


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


def entry(p_value, interval, n=40, **more):
    return {"n": n, "auc_ci95": interval, "direction": "undetermined", "direction_p": p_value,
            **more}  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "direction"),
    [
        (entry(0.01, (0.51, 0.6)), "agrees"),
        (entry(0.01, (0.4, 0.49)), "opposes"),
        (entry(0.001, (0.51, 0.6), n=DIRECTION_MIN - 1), "undetermined"),
        (entry(0.01, (0.51, 0.6), n=DIRECTION_MIN), "agrees"),
        (entry(LEVEL, (0.51, 0.6)), "undetermined"),
        (entry(0.01, (0.5, 0.6)), "undetermined"),
        (entry(0.01, (0.4, 0.5)), "undetermined"),
        (entry(0.01, None), "undetermined"),
        (entry(0.01, (0.51, 0.6), auc_ci95_by_prompt=(0.49, 0.6)), "undetermined"),
        (entry(0.01, (0.51, 0.6), auc_ci95_by_prompt=None), "undetermined"),
    ],
)
def test_a_direction_needs_battles_an_interval_and_the_test(figures, direction):
    claim_directions([{"overall": figures}])
    assert figures["direction"] == direction


def test_directions_are_adjusted_over_scores_and_main_strata():
    """Four tests: Holm's factors are 4, 3, 2, 1 from the smallest p on; months are no tests."""
    scores = [
        {"overall": entry(0.01, (0.51, 0.6)), "vocal": entry(0.02, (0.51, 0.6)),
         "month:2026-01": {"n": 40}},
        {"overall": entry(0.4, (0.45, 0.6)), "instrumental": entry(0.03, (0.51, 0.6))},
    ]  # fmt: skip
    claim_directions(scores)
    found = [strata[name] for strata in scores for name in strata if name[0] != "m"]
    assert [one["direction_p"] for one in found] == pytest.approx([0.04, 0.06, 0.4, 0.06])
    assert [one["direction"] == "agrees" for one in found] == [True, False, False, False]


def test_hull_and_the_error_within_pairs_by_hand():
    assert hull((0.2, 0.5), None, (0.3, 0.8)) == (0.2, 0.8)
    assert hull(None) is None
    # strata of 1 against 1 and 2 against 3: sqrt((1 * 3 + 6 * 6) / 12) / 7
    error = pairwise_error(np.array([1, 2, 4]), np.array([1, 3, 0]))
    assert error == pytest.approx(math.sqrt(39 / 12) / 7)
    assert math.isnan(pairwise_error(np.array([3]), np.array([0])))


def test_few_prompts_stretch_their_interval_and_one_has_none():
    samples = np.linspace(0.6, 0.8, 101)
    low, high = percentile_interval(samples)
    assert prompt_interval(samples, 0.7, 1, (0.65, 0.75)) is None
    # Student's t with 4 degrees of freedom is 2.776, 1.4165 times the normal 1.95996; and
    # resampled means of five spread too little by the root of 4/5
    stretched = 0.7 - 1.58371 * (0.7 - low), 0.7 + 1.58371 * (high - 0.7)
    assert prompt_interval(samples, 0.7, 5, (0.69, 0.71)) == pytest.approx(stretched, abs=1e-4)
    assert prompt_interval(samples, 0.7, 5, (0.1, 0.9)) == (0.1, 0.9)
    assert prompt_interval(np.full(9, 0.7), 0.7, 5, (0.6, 0.8)) == (0.6, 0.8)


def test_votes_that_repeat_one_prompt_claim_nothing():
    # five prompts with forty votes each: forty votes are one observation
    rows = [
        {"preference": "AB"[prompt % 2], "prompt": f"p{prompt}", "s_a": value, "s_b": 0.0}
        for prompt, value in enumerate((1.0, -0.5, 0.8, 0.9, 0.1))
        for _ in range(40)
    ]
    overall = evaluate_battles(battles_of(rows), bootstrap=300)["scores"]["s"]["overall"]
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


def battles(n=120, seed=0, decimals=1):
    rng = np.random.default_rng(seed)
    difference = np.round(rng.normal(size=n), decimals)
    a_won = rng.random(n) < 1 / (1 + np.exp(-difference))
    return difference, a_won, rng.integers(0, n // 3, n)


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_equals_the_plain_loop(clustered, decimals):
    difference, a_won, prompts = battles(decimals=decimals)
    clusters = prompts if clustered else None
    paired = PairedRounds(difference, a_won)
    for rounds, statistic in ((paired.accuracy, accuracy), (paired.auc, auc)):
        samples = bootstrap(rounds, len(a_won), rounds=60, seed=5, clusters=clusters)
        loop = bootstrap_interval(
            statistic, difference, a_won, rounds=60, seed=5, clusters=clusters
        )
        assert percentile_interval(samples) == pytest.approx(loop, abs=1e-12)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.booleans(), st.integers(0, 2), st.integers(0, 3)),
        min_size=1,
        max_size=14,
    )
)
def test_stratified_auc_counts_pairs_within_strata_only(rows):
    difference, a_won, strata, count = map(np.array, zip(*rows, strict=True))
    wins = pairs = 0.0
    for i in np.flatnonzero(a_won):
        for j in np.flatnonzero(~a_won):
            if strata[i] == strata[j]:
                weight = float(count[i] * count[j])
                pairs += weight
                wins += weight * (0.5 + 0.5 * np.sign(difference[i] - difference[j]))
    value = PairedRounds(difference.astype(float), a_won, strata).auc(count[None].astype(float))
    expected = wins / pairs if pairs else np.nan
    np.testing.assert_allclose(value, [expected], atol=1e-12)


def test_one_class_gives_no_auc():
    paired = PairedRounds(np.array([1.0, -1.0]), np.array([True, True]))
    assert np.isnan(bootstrap(paired.auc, 2, rounds=20)).all()
    assert not np.isnan(bootstrap(paired.accuracy, 2, rounds=20)).any()


@pytest.mark.slow
def test_intervals_cover_one_half_when_there_is_no_signal():
    covered = {"accuracy": 0, "auc": 0}
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        difference, a_won = rng.normal(size=400), rng.random(400) < 0.5
        paired = PairedRounds(difference, a_won)
        for name in covered:
            low, high = percentile_interval(bootstrap(getattr(paired, name), 400, seed=seed))
            covered[name] += low <= 0.5 <= high
    assert 930 <= covered["accuracy"] <= 970, covered
    assert 930 <= covered["auc"] <= 970, covered
