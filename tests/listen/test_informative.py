"""The informative order: gains by brute force, what is asked first, and what a vote changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apex_reward.errors import UsageError
from apex_reward.files.tables import read_jsonl
from apex_reward.listen.informative import expected_gain, features_of
from apex_reward.listen.session import Session
from apex_reward.listen.sources import Comparison, read_comparisons
from tests.listen.test_listen import songs, voted

NONE = np.array([], np.intp), np.array([])


def entropy(p):
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def test_the_gain_before_any_vote_is_that_of_many_draws_of_the_prior():
    features = np.array([[0.5, -1.0], [2.0, 1.0], [0.0, 0.0]])
    draws = np.random.default_rng(0).normal(size=(200_000, 2))
    chance = 1 / (1 + np.exp(-draws @ features.T))
    by_hand = entropy(chance.mean(axis=0)) - entropy(chance).mean(axis=0)
    assert expected_gain(features, *NONE) == pytest.approx(by_hand, abs=2e-3)
    assert abs(by_hand[2]) < 1e-9


def test_votes_take_the_gain_from_what_they_tell():
    features = np.eye(2) * 2
    before = expected_gain(features, *NONE)
    assert before[0] == pytest.approx(before[1])
    after = expected_gain(features, np.array([0] * 20), np.array([1.0] * 20))
    assert after[0] < 0.2 * before[0]  # the winner is known
    assert after[1] == pytest.approx(before[1])


def test_features_are_differences_of_mean_square_one_and_systems_where_several_meet():
    def item(first, second, scores):
        return Comparison("", (Path("a"), Path("b")), (first, second), scores)

    items = [item("x", "y", {"fame": (3.0, 1.0)}), item("y", "z", {"fame": (1.0, float("nan"))})]
    assert features_of(items) == pytest.approx(
        np.array([[2**0.5, 2**0.5, -1, 0], [0, 0, 1, -(2**0.5)]])
    )
    assert features_of(items[:1]).tolist() == [[1.0]]
    assert features_of([item("x", "y", {})]).shape == (1, 0)


def test_a_session_asks_what_is_open_and_leaves_what_is_known(tmp_path):
    folder = songs(tmp_path / "songs", 6)
    plain = read_comparisons(folder)
    with pytest.raises(UsageError, match="something to learn"):
        Session(plain, tmp_path / "v.jsonl", order="informative")
    # Two scores: one apart in the first three pairs, the other in the rest, less and less.
    pairs = [
        Comparison("", item.songs, item.systems, {f"score{n // 3}": (1 / (1 + n % 3), 0.0)},
                   item.identity) for n, item in enumerate(plain)
    ]  # fmt: skip
    session = Session(pairs, tmp_path / "votes.jsonl", order="informative", min_seconds=0)
    asked = [pairs.index(question.comparison) for question in voted(session, "ann", 4)]
    assert sorted(asked[:2]) == [0, 3]  # the strongest of each, then the next
    assert sorted(asked[2:]) == [1, 4]
    again = Session(pairs, tmp_path / "votes.jsonl", order="informative", min_seconds=0)
    rest = [pairs.index(question.comparison) for question in voted(again, "ann", 2)]
    assert sorted(rest) == [2, 5]
    swapped = [row["swapped"] for row in read_jsonl(tmp_path / "votes.jsonl")]
    assert sum(swapped[:2]) == sum(swapped[2:4]) == sum(swapped[4:]) == 1
    # Bob is asked what Ann's votes left open.
    (first,) = voted(again, "bob", 1)
    assert pairs.index(first.comparison) in (0, 3)
