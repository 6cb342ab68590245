import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from apex_reward.arena import arena_scores, battles_of, leaderboards
from apex_reward.arena.results import to_json
from apex_reward.arena.simulate import simulate_battles
from apex_reward.errors import DataError


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
    board = to_json(leaderboards(battles_of(rows), bootstrap=20))
    assert board["dropped"]["BOTH_BAD"] == sum(row["preference"] == "BOTH_BAD" for row in rows)
    scores = {row["system"]: row["score"] for row in board["leaderboard"]}
    assert scores == pytest.approx(plain_scores(rows, ["w", "x", "y", "z"]), abs=1e-6)
    assert [row["system"] for row in board["leaderboard"]] == ["w", "z", "y", "x"]
    assert np.mean(list(scores.values())) == pytest.approx(1000)


def test_intervals_are_of_resampled_battles():
    rows = simulate_battles(120, slopes={"s": 0.0}, strengths={"x": -0.5, "y": 0.0, "z": 0.5})
    board = to_json(leaderboards(battles_of(rows), bootstrap=40, seed=7))["leaderboard"]
    rng = np.random.default_rng(7)
    samples = [
        plain_scores([rows[i] for i in rng.integers(0, 120, 120)], ["x", "y", "z"])
        for _ in range(40)
    ]
    for row in board:
        interval = np.percentile([sample[row["system"]] for sample in samples], [2.5, 97.5])
        assert [row["lower"], row["upper"]] == pytest.approx(interval, abs=1e-5)
        assert row["lower"] < row["score"] < row["upper"]


def test_a_perfect_record_stays_finite():
    wins = np.zeros((3, 3))
    wins[0, 1] = wins[0, 2] = wins[1, 2] = 1000.0
    scores = arena_scores(wins)
    assert np.isfinite(scores).all()
    assert scores[0] > scores[1] > scores[2]


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


def test_a_reward_s_board_and_its_rank_correlation():
    strengths = {"a": -1.5, "b": -0.5, "c": 0.5, "d": 1.5}
    rows = simulate_battles(
        800, slopes={"good": 0.0, "bad": 0.0}, strengths=strengths, score_follows_system=2.0
    )
    for row in rows:
        row["bad_a"], row["bad_b"] = -row["good_a"], -row["good_b"]
    rows[0]["good_a"] = None
    result = to_json(leaderboards(battles_of(rows), ["good", "bad"], bootstrap=60))
    good, bad = result["scores"]["good"], result["scores"]["bad"]
    assert [row["system"] for row in good["leaderboard"]] == ["d", "c", "b", "a"]
    assert good["n"] == 799
    assert good["rank_correlation"] == 1.0
    assert bad["rank_correlation"] == -1.0
    assert good["rank_correlation_ci95"][0] > 0.5
    assert list(good["leaderboard"][0]) == ["system", "score", "lower", "upper", "battles"]
    battles = {row["system"]: row["battles"] for row in result["leaderboard"]}
    assert sum(battles.values()) == 1600


def test_a_tied_score_is_half_a_win():
    rows = [
        {"preference": "A", "system_a": "x", "system_b": "y", "s_a": 1.0, "s_b": 1.0},
        {"preference": "A", "system_a": "x", "system_b": "y", "s_a": 0.0, "s_b": 0.0},
    ]
    board = to_json(leaderboards(battles_of(rows), ["s"], bootstrap=5))["scores"]["s"][
        "leaderboard"
    ]
    assert [row["score"] for row in board] == [1000.0, 1000.0]


def test_battles_without_two_systems_are_counted_and_none_at_all_is_refused():
    rows = [
        {"preference": "A", "system_a": "x", "system_b": "y"},
        {"preference": "A", "system_a": "x", "system_b": "X"},
        {"preference": "A", "system_a": "x", "system_b": None},
    ]
    for row in rows:
        row["s_a"], row["s_b"] = 1.0, 0.0
    result = to_json(leaderboards(battles_of(rows), ["s"], bootstrap=5))
    assert result["scores"]["s"]["rank_correlation_ci95"] is None
    assert result["n_used"] == 1
    # One battle is resampled to itself: the interval is the likelihood's, no point.
    assert [(row["battles"], row["upper"] - row["lower"]) for row in result["leaderboard"]] == [
        (1, pytest.approx(2 * 1.96 * 102.1, abs=0.3))
    ] * 2
    assert result["dropped"] == {"BOTH_BAD": 0, "no_system": 1, "same_system": 1}
    with pytest.raises(DataError, match="between two different systems"):
        leaderboards(battles_of(rows[1:]))
