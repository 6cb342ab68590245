import tracemalloc

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.linear_model import LogisticRegression

from apex_reward.arena.battles import battles_of
from apex_reward.arena.leaderboard import (
    WIDE_L2,
    arena_scores,
    leaderboards,
    likelihood_drop,
    profile_bounds,
    strengths,
)
from apex_reward.errors import DataError
from tests.arena.simulate import simulate_battles


def plain_scores(rows, names):
    """The Arena score as its description says it, with scikit-learn."""
    x, y, weights = [], [], []
    for row in rows:
        vector = np.zeros(len(names))
        vector[names.index(row["system_a"])] += 1
        vector[names.index(row["system_b"])] -= 1
        outcomes = {"A": [(1, 1.0)], "B": [(0, 1.0)], "TIE": [(1, 0.5), (0, 0.5)]}
        for outcome, weight in outcomes.get(row["preference"], []):
            x.append(vector)
            y.append(outcome)
            weights.append(weight)
    fitted = LogisticRegression(
        C=1.0, fit_intercept=False, solver="newton-cholesky", tol=1e-12
    ).fit(x, y, sample_weight=weights)
    scores = 400 * fitted.coef_[0] / np.log(10)
    return dict(zip(names, scores - scores.mean() + 1000, strict=True))


def test_two_systems_by_hand():
    # 3 wins to 1 and L2 1 on both strengths: s = -t solves 4 sigmoid(2s) + s = 3
    s = 0.45
    for _ in range(50):
        p = 1 / (1 + np.exp(-2 * s))
        s -= (4 * p + s - 3) / (8 * p * (1 - p) + 1)
    expected = 400 * s / np.log(10)
    scores = arena_scores(np.array([[0.0, 3.0], [1.0, 0.0]]))
    assert scores == pytest.approx([1000 + expected, 1000 - expected], abs=1e-9)
    assert expected == pytest.approx(59.379, abs=1e-3)


def test_equals_a_plain_logistic_regression():
    rows = simulate_battles(
        400,
        slopes={"s": 0.0},
        strengths={"x": -2.0, "y": 0.0, "z": 0.5, "w": 3.0},
        undecided=0.3,
        seed=1,
    )
    board = leaderboards(battles_of(rows), bootstrap=20)
    assert board["dropped"]["BOTH_BAD"] == sum(row["preference"] == "BOTH_BAD" for row in rows)
    scores = {row["system"]: row["score"] for row in board["leaderboard"]}
    assert scores == pytest.approx(plain_scores(rows, ["w", "x", "y", "z"]), abs=1e-6)
    assert [row["system"] for row in board["leaderboard"]] == ["w", "z", "y", "x"]
    assert np.mean(list(scores.values())) == pytest.approx(1000)


def log_likelihood(strength, wins):
    gap = strength[:, None] - strength[None, :]
    return -(wins * np.log1p(np.exp(-gap))).sum() - WIDE_L2 / 2 * (strength**2).sum()


def test_bounds_are_where_the_best_fit_with_that_lead_has_lost_the_likelihood():
    """Against a general optimiser that holds the lead of a system fixed."""
    wins = np.array([[0.0, 6, 9], [3, 0, 5.5], [1, 4.5, 0]])
    drop = np.full(3, 1.92)
    best = log_likelihood(strengths(wins, WIDE_L2), wins)
    for ends in profile_bounds(wins, drop):
        for system, end in enumerate(ends):
            lead = (end - 1000) * np.log(10) / 400
            fixed = {"type": "eq", "fun": lambda s, i=system, c=lead: s[i] - s.mean() - c}
            found = optimize.minimize(
                lambda s: -log_likelihood(s, wins), np.zeros(3), constraints=[fixed], tol=1e-12
            )
            assert best + found.fun == pytest.approx(1.92, abs=1e-4)


def test_the_likelihood_drop_by_hand():
    """Many battles 1.92; few Student's t; a record without a loss its exact tail at any number."""
    wins = np.array([[0.0, 5, 300], [4, 0, 0], [290, 0, 0]])
    student = stats.t.ppf(0.975, [599, 9, 590]) ** 2 / 2
    assert likelihood_drop(wins) == pytest.approx(student)
    assert student[0] == pytest.approx(1.92, abs=0.01)
    perfect = np.array([[0.0, 500], [0, 0]])
    assert likelihood_drop(perfect) == pytest.approx([np.log(40)] * 2)
    # 0.025 to the power of 1 / 500 is the exact lower bound of the chance to win
    low, _ = profile_bounds(perfect, likelihood_drop(perfect))
    exact = 0.025 ** (1 / 500)
    assert low[0] == pytest.approx(1000 + 200 * np.log10(exact / (1 - exact)), abs=15)


@pytest.mark.slow
@pytest.mark.parametrize("votes", [10, 60, 400])
@pytest.mark.parametrize(
    "strength", [(0, 0, 0, 0), (0, 0.5, 1, 2), (0, 0, 0, 4), (0, 0, 0, 7), (-3, 0, 0, 3)]
)
def test_intervals_hold_the_true_score_at_every_strength_and_number_of_votes(strength, votes):
    """Of 120 sets each system's interval held the truth in 0.91 (0.5 at 400 votes) to 1.00."""
    true = np.array(strength, float)
    truth = 1000 + 400 / np.log(10) * (true - true.mean())
    rng = np.random.default_rng([votes, *map(abs, map(int, true * 2))])
    held = sets = 0
    for _ in range(25):
        a, b = np.array([rng.choice(4, 2, replace=False) for _ in range(votes)]).T
        won = rng.random(votes) < 1 / (1 + np.exp(true[b] - true[a]))
        rows = [
            {"battle_uuid": str(n), "preference": "A" if w else "B", "system_a": f"s{i}",
             "system_b": f"s{j}"}
            for n, (i, j, w) in enumerate(zip(a, b, won, strict=True))
        ]  # fmt: skip
        board = leaderboards(battles_of(rows))["leaderboard"]
        if len(board) < 4 or any(row["component"] > 1 for row in board):
            continue
        for row in board:
            upper = np.inf if row["upper"] is None else row["upper"]
            held += row["lower"] <= truth[int(row["system"][1])] <= upper
            sets += 1
    assert held >= 0.92 * sets


def test_votes_that_repeat_prompts_widen_the_interval():
    """Every vote four times under one prompt: the same knowledge, intervals twice as wide."""
    rows = simulate_battles(150, slopes={"s": 0.0}, strengths={"x": -0.5, "y": 0.0, "z": 0.5})
    copies = [{**row, "battle_uuid": f"{row['battle_uuid']}-{n}"} for row in rows for n in range(4)]
    plain = [{**row, "prompt": None} for row in copies]
    wide, narrow = (
        {row["system"]: row["upper"] - row["lower"] for row in leaderboards(battles_of(r))[
            "leaderboard"]} for r in (copies, plain)
    )  # fmt: skip
    for system, width in wide.items():
        assert width == pytest.approx(2 * narrow[system], rel=0.15)
    one = [{**row, "prompt": "one"} for row in rows]
    board = leaderboards(battles_of(one), bootstrap=20)["leaderboard"]
    assert {(row["lower"], row["upper"]) for row in board} == {(None, None)}


def test_a_system_that_won_all_has_no_upper_bound():
    rows = [
        {"preference": "A", "system_a": "best", "system_b": name, "battle_uuid": f"{name}{n}"}
        for name in ("x", "y")
        for n in range(20)
    ] + [{"preference": "AB"[n % 2], "system_a": "x", "system_b": "y"} for n in range(20)]
    first, *others = leaderboards(battles_of(rows))["leaderboard"]
    assert first["system"] == "best"
    assert first["upper"] is None
    assert first["lower"] > 1000
    assert all(row["lower"] < row["score"] < row["upper"] < 1000 for row in others)


def test_systems_that_never_met_are_not_ranked_together():
    """Two sets of systems: the larger is component 1, each has a mean of 1000."""
    rows = [
        {"preference": "AB"[n % 3 == 0], "system_a": a, "system_b": b}
        for a, b in (("a", "b"), ("b", "c"), ("x", "y"))
        for n in range(12)
    ]
    board = leaderboards(battles_of(rows))["leaderboard"]
    assert [(row["system"], row["component"]) for row in board] == [
        ("a", 1), ("b", 1), ("c", 1), ("x", 2), ("y", 2)
    ]  # fmt: skip
    for number in (1, 2):
        scores = [row["score"] for row in board if row["component"] == number]
        assert np.mean(scores) == pytest.approx(1000)


def test_memory_grows_with_the_battles_and_not_with_the_systems_squared():
    rng = np.random.default_rng(0)
    pairs = [rng.choice(40, 2, replace=False) for _ in range(8000)]
    rows = [
        {"battle_uuid": f"{n:05d}", "preference": "AB"[n % 2], "system_a": f"s{a}",
         "system_b": f"s{b}", "prompt": f"p{n % 900}"}
        for n, (a, b) in enumerate(pairs)
    ]  # fmt: skip
    battles = battles_of(rows)
    tracemalloc.start()
    leaderboards(battles, bootstrap=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # 8,000 battles times 1,600 pairs in floats are 102 MB


@pytest.mark.parametrize("l2", [1e-4, 1.0])
def test_a_perfect_record_by_hand_alone_and_among_others(l2):
    """n wins to 0: s = -t solves n sigmoid(-2s) = l2 s."""
    many = np.zeros((3, 2, 2))
    many[:, 0, 1] = (1.0, 100.0, 10_000.0)
    together = arena_scores(many, l2)
    for wins, scores in zip(many, together, strict=True):
        n = wins[0, 1]
        s = optimize.brentq(lambda s, n=n: n / (1 + np.exp(2 * s)) - l2 * s, 0, 100, xtol=1e-13)
        expected = 400 * s / np.log(10)
        assert scores == pytest.approx([1000 + expected, 1000 - expected], abs=1e-6)
        np.testing.assert_allclose(arena_scores(wins, l2), scores, atol=1e-6)


@pytest.mark.parametrize("l2", [1e-4, 1.0])
def test_systems_that_a_pair_never_met_do_not_move_it(l2):
    wins = np.zeros((50, 50))
    wins[0, 1], wins[1, 0] = 3.0, 1.0
    wins[2:, 2:] = 5.0
    gaps = [
        scores[0] - scores[1] for scores in (arena_scores(wins[:2, :2], l2), arena_scores(wins, l2))
    ]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6)
    assert gaps[0] > 50


def test_a_reward_s_board_and_its_rank_correlation():
    strengths = {"a": -1.5, "b": -0.5, "c": 0.5, "d": 1.5}
    rows = simulate_battles(
        800, slopes={"good": 0.0, "bad": 0.0}, strengths=strengths, score_follows_system=2.0
    )
    for row in rows:
        row["bad_a"], row["bad_b"] = -row["good_a"], -row["good_b"]
    rows[0]["good_a"] = None
    result = leaderboards(battles_of(rows), ["good", "bad"], bootstrap=60)
    good, bad = result["scores"]["good"], result["scores"]["bad"]
    assert [row["system"] for row in good["leaderboard"]] == ["d", "c", "b", "a"]
    assert good["n"] == 799
    assert good["rank_correlation"] == 1.0
    assert bad["rank_correlation"] == -1.0
    assert good["rank_correlation_ci95"] is None  # no round differs, which proves no certainty
    assert list(good["leaderboard"][0]) == [
        "system",
        "score",
        "lower",
        "upper",
        "battles",
        "component",
    ]
    battles = {row["system"]: row["battles"] for row in result["leaderboard"]}
    assert sum(battles.values()) == 1600


def test_a_tied_score_is_half_a_win():
    rows = [
        {"preference": "A", "system_a": "x", "system_b": "y", "s_a": 1.0, "s_b": 1.0},
        {"preference": "A", "system_a": "x", "system_b": "y", "s_a": 0.0, "s_b": 0.0},
    ]
    board = leaderboards(battles_of(rows), ["s"], bootstrap=5)["scores"]["s"]["leaderboard"]
    assert [row["score"] for row in board] == [1000.0, 1000.0]


def test_battles_without_two_systems_are_counted_and_none_at_all_is_refused():
    rows = [
        {"preference": "A", "system_a": "x", "system_b": "y"},
        {"preference": "A", "system_a": "x", "system_b": "X"},
        {"preference": "A", "system_a": "x", "system_b": None},
    ]
    for row in rows:
        row["s_a"], row["s_b"] = 1.0, 0.0
    result = leaderboards(battles_of(rows), ["s"], bootstrap=5)
    assert result["scores"]["s"]["rank_correlation_ci95"] is None
    assert result["n_used"] == 1
    won, lost = result["leaderboard"]
    assert (won["battles"], lost["battles"]) == (1, 1)
    # 0.025 is the smallest chance to win that one win in one battle leaves: 39 to 1 against
    assert won["lower"] == pytest.approx(1000 - 200 * np.log10(39), abs=15)
    assert lost["upper"] == pytest.approx(1000 + 200 * np.log10(39), abs=15)
    assert won["upper"] is None
    assert result["dropped"] == {"BOTH_BAD": 0, "no_system": 1, "same_system": 1}
    with pytest.raises(DataError, match="between two different systems"):
        leaderboards(battles_of(rows[1:]))
