"""Fits, folds and the reliability of held-out votes."""

import math

import numpy as np
import pytest
from scipy.special import logit

from apex_reward.arena.heldout import (
    choose_l2,
    fit_logistic,
    group_folds,
    held_out_logit,
    reliability,
    root_mean_square,
)
from apex_reward.errors import DataError


@pytest.mark.parametrize("l2", [1e-6, 1e-2, 1.0, 50.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_at_the_minimum_the_gradient_is_zero(scale, l2):
    """Also where one value separates the votes, and the first Newton steps go too far."""
    features = scale * np.array([[1.0, 0.0], [2.0, 1.0], [-1.0, 3.0]])
    label = np.array([1.0, 1.0, 0.0])
    fitted = fit_logistic(features, label, l2)
    gradient = features.T @ (1 / (1 + np.exp(-features @ fitted)) - label) + l2 * fitted
    assert np.abs(gradient).max() < 1e-8


def test_folds_keep_groups_together_and_hold_every_battle_once():
    groups = np.random.default_rng(1).integers(0, 60, 500)
    folds = group_folds(groups, 10, seed=0)
    assert np.sort(np.concatenate([test for _, test in folds])).tolist() == list(range(500))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert 20 < len(test) < 80
    other = group_folds(groups, 10, seed=1)
    assert any(
        len(a) != len(b) or (a != b).any() for (_, a), (_, b) in zip(folds, other, strict=True)
    )
    assert [len(test) for _, test in group_folds(np.array([5, 6, 5]), 10, seed=0)] in (
        [1, 2],
        [2, 1],
    )
    with pytest.raises(DataError, match="at least two groups"):
        group_folds(np.array([1, 1, 1]), 10, seed=0)


def test_the_prior_is_strong_for_noise_and_weak_for_signal():
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(300, 8)), np.arange(300)
    noise = (rng.random(300) < 0.5).astype(float)
    signal = (rng.random(300) < 1 / (1 + np.exp(-3 * features[:, 0]))).astype(float)
    assert choose_l2(features, noise, groups, seed=0) >= 30
    assert choose_l2(features, signal, groups, seed=0) <= 3


def test_calibration_error_by_hand():
    # two bins: mean 0.2 with half won, mean 0.8 with all won
    result = reliability(
        logit(np.array([0.1, 0.3, 0.7, 0.9])), np.array([True, False, True, True]), bins=2
    )
    assert result["ece"] == pytest.approx((0.3 + 0.2) / 2)
    assert [point["observed"] for point in result["reliability"]] == [0.5, 1.0]


def test_calibration_errors_that_are_not_defined():
    result = reliability(np.array([0.1, np.nan]), np.array([True, False]), bins=2)
    assert math.isnan(result["ece"])
    assert result["reliability"] == []
    few = reliability(logit(np.array([0.75, 0.25])), np.array([True, False]))  # fewer than bins
    assert few["ece"] == pytest.approx(0.25)
    assert [point["n"] for point in few["reliability"]] == [1, 1]


def test_equal_probabilities_share_a_bin_and_no_point_lies_where_none_is():
    """Two values only, whatever the order of the battles: two points, each at its own value."""
    probability = np.repeat([0.42, 0.58], [85, 15])
    won = np.arange(100) % 3 == 0
    curves = []
    for order in (np.arange(100), np.random.default_rng(1).permutation(100)):
        found = reliability(logit(probability[order]), won[order])
        curves.append(found)
        assert [point["n"] for point in found["reliability"]] == [85, 15]
        assert [p["predicted"] for p in found["reliability"]] == pytest.approx([0.42, 0.58])
    assert curves[0]["ece"] == pytest.approx(curves[1]["ece"], abs=1e-15)


def test_held_out_votes_need_two_groups():
    features, won = np.array([[3.0, 0.0], [-4.0, 0.0]]), np.array([True, False])
    assert root_mean_square(features).tolist() == [math.sqrt(12.5), 1.0]
    one = held_out_logit(features, won, np.array([7, 7]), l2=1.0, seed=0)
    assert np.isnan(one).all()
    # Trained on the other battle alone: its side won with the same sign, so both are right.
    two = held_out_logit(features, won, np.array([1, 2]), l2=1.0, seed=0)
    assert two[0] > 0 > two[1]
