import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from apex_reward import metrics
from apex_reward.errors import UsageError

small = st.integers(-4, 4)
pairs = st.lists(st.tuples(small, small), min_size=1, max_size=30)
labelled = st.lists(st.tuples(small, st.booleans()), min_size=1, max_size=30)


def columns(rows):
    first, second = zip(*rows, strict=True)
    return np.array(first, float), np.array(second, float)


def test_values_worked_out_by_hand():
    assert metrics.mse([1, 2, 5], [1, 4, 2]) == pytest.approx((0 + 4 + 9) / 3)
    assert metrics.mae([1, 2, 5], [1, 4, 2]) == pytest.approx((0 + 2 + 3) / 3)
    assert metrics.pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert metrics.spearman([0, 7, 7, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    # pairs (winner, loser): (3, 1) and (3, 2) right, (1, 1) tie, (1, 2) wrong
    assert metrics.auc([3, 1, 1, 2], [1, 1, 0, 0]) == (1 + 1 + 0.5 + 0) / 4
    assert metrics.accuracy([2, -1, 0, -3], [True, True, True, False]) == (1 + 0 + 0.5 + 1) / 4
    # 3 heads in 4 throws: 2 * (1 + 4) / 16
    assert metrics.binomial_p_value(3, 4) == 10 / 16


@given(pairs)
def test_equals_scipy(rows):
    x, y = columns(rows)
    if len(x) > 1 and np.ptp(x) and np.ptp(y):
        assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
        assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)
    else:
        assert math.isnan(metrics.pearson(x, y))
        assert math.isnan(metrics.spearman(x, y))


def test_auc_of_scores_far_above_1_is_that_of_their_order():
    score = np.arange(41.0, 100.0, dtype=np.float32)
    assert metrics.auc(score, score > 70) == 1.0
    assert metrics.auc(-score, score > 70) == 0.0


@given(labelled)
def test_auc_equals_scikit_learn_and_counting_pairs(rows):
    score, label = columns(rows)
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in score[label > 0]
        for b in score[label == 0]
    ]
    if not wins:
        assert math.isnan(metrics.auc(score, label))
        return
    assert metrics.auc(score, label) == pytest.approx(np.mean(wins), abs=1e-12)
    assert metrics.auc(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@given(labelled)
def test_a_negated_score_is_the_mirror_image(rows):
    score, label = columns(rows)
    assert metrics.accuracy(-score, label) == pytest.approx(1 - metrics.accuracy(score, label))
    if 0 < label.sum() < len(label):
        assert metrics.auc(-score, label) == pytest.approx(1 - metrics.auc(score, label))


@pytest.mark.parametrize("trials", [0, 1, 7, 300, 1000, 1001, 5000])
def test_binomial_p_value_equals_scipy(trials):
    for successes in {0, trials // 3, trials // 2, trials}:
        expected = scipy.stats.binomtest(successes, trials).pvalue if trials else 1.0
        assert metrics.binomial_p_value(successes, trials) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("measure", [metrics.mse, metrics.mae, metrics.pearson, metrics.spearman])
def test_what_is_not_defined_is_nan(measure):
    assert math.isnan(measure([], []))
    assert math.isnan(measure([1.0, math.nan], [1.0, 2.0]))


def test_constants_of_inexact_floats_have_no_correlation():
    assert math.isnan(metrics.pearson([0.1] * 3, [1, 2, 3]))
    assert math.isnan(metrics.accuracy([], []))
    assert math.isnan(metrics.auc([1.0, math.nan], [0, 1]))


@pytest.mark.parametrize(
    "measure",
    [metrics.mse, metrics.mae, metrics.pearson, metrics.spearman, metrics.auc, metrics.accuracy],
)
def test_different_lengths_are_refused(measure):
    with pytest.raises(UsageError, match=r"shapes \(2,\) and \(3,\)"):
        measure([1, 2], [1, 2, 3])


def test_bootstrap_interval_is_the_percentiles_of_resampled_statistics():
    values = np.arange(50.0)
    rng = np.random.default_rng(3)
    means = [values[rng.integers(0, 50, 50)].mean() for _ in range(200)]
    interval = metrics.bootstrap_interval(lambda x: x.mean(), values, rounds=200, seed=3)
    assert interval == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_bootstrap_keeps_clusters_together_and_arrays_aligned():
    clusters = np.array(["x", "y", "x", "z", "y"])

    def whole(labels, numbers):
        counts = {label: (labels == label).sum() for label in "xyz"}
        assert counts["x"] % 2 == 0
        assert counts["y"] % 2 == 0
        assert all((clusters[n] == label) for label, n in zip(labels, numbers, strict=True))
        return len(labels)

    low, high = metrics.bootstrap_interval(
        whole, clusters, np.arange(5), rounds=100, clusters=clusters
    )
    assert low < 5 < high  # clusters of different sizes: the number of rows varies


def test_bootstrap_of_nothing_and_wrong_calls():
    assert all(map(math.isnan, metrics.bootstrap_interval(np.mean, [])))
    assert all(map(math.isnan, metrics.bootstrap_interval(metrics.auc, [1, 2], [1, 1])))
    with pytest.raises(UsageError, match="different lengths"):
        metrics.bootstrap_interval(metrics.mse, [1, 2], [1])
    with pytest.raises(UsageError, match="5 successes in 4 trials"):
        metrics.binomial_p_value(5, 4)


def test_every_round_draws_as_many_battles_and_chunks_do_not_matter(monkeypatch):
    whole = np.concatenate(list(metrics.resample_counts(50, rounds=30, seed=1)))
    monkeypatch.setattr("apex_reward.metrics._CHUNK_CELLS", 170)
    chunks = list(metrics.resample_counts(50, rounds=30, seed=1))
    assert [len(chunk) for chunk in chunks] == [3] * 10
    assert (np.concatenate(chunks) == whole).all()
    assert (whole.sum(axis=1) == 50).all()
    assert len(np.unique(whole, axis=0)) == 30


def test_clusters_are_numbered_by_their_labels_whatever_the_order_of_rows():
    assert metrics.cluster_codes(["b", "a", "b", "c"]).tolist() == [1, 0, 1, 2]
    labels, values = np.array(list("bbacdd")), np.arange(6.0)
    order = np.array([3, 5, 0, 2, 1, 4])
    here, there = (
        metrics.bootstrap_interval(np.mean, values[rows], clusters=labels[rows], rounds=50)
        for rows in (np.arange(6), order)
    )
    assert here == pytest.approx(there, abs=1e-12)


def test_an_interval_never_claims_certainty():
    """Two songs correlate by 1 or not at all, and one cluster is always the same."""
    pair = metrics.bootstrap_interval(metrics.pearson, [1.0, 2.0], [1.0, 3.0])
    assert all(map(math.isnan, pair))
    one = metrics.bootstrap_interval(np.mean, [1.0, 0.0, 1.0], clusters=["p", "p", "p"])
    assert all(map(math.isnan, one))


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling
    assert metrics.holm([0.03, 0.5, 0.01, 0.02]).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert metrics.holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert metrics.holm([]).tolist() == []


def test_holm_of_an_unknown_p_value_leaves_the_others_alone():
    adjusted = metrics.holm([0.001, np.nan, 0.2])
    assert adjusted[[0, 2]].tolist() == metrics.holm([0.001, 0.2]).tolist() == [0.002, 0.2]
    assert np.isnan(adjusted[1])
