import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward.arena.bootstrap import PairedRounds, bootstrap_rounds, resample_counts
from apex_reward.metrics import accuracy, auc, bootstrap_interval, percentile_interval


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
    accuracies, aucs = bootstrap_rounds(difference, a_won, rounds=60, seed=5, clusters=clusters)
    for samples, statistic in ((accuracies, accuracy), (aucs, auc)):
        loop = bootstrap_interval(
            statistic, difference, a_won, rounds=60, seed=5, clusters=clusters
        )
        assert percentile_interval(samples) == pytest.approx(loop, abs=1e-12)


def test_every_round_draws_as_many_battles_and_chunks_do_not_matter(monkeypatch):
    whole = np.concatenate(list(resample_counts(50, 30, seed=1)))
    monkeypatch.setattr("apex_reward.arena.bootstrap._CHUNK_CELLS", 170)
    chunks = list(resample_counts(50, 30, seed=1))
    assert [len(chunk) for chunk in chunks] == [3] * 10
    assert (np.concatenate(chunks) == whole).all()
    assert (whole.sum(axis=1) == 50).all()
    assert len(np.unique(whole, axis=0)) == 30


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
    accuracies, aucs = bootstrap_rounds(np.array([1.0, -1.0]), np.array([True, True]), rounds=20)
    assert np.isnan(aucs).all()
    assert not np.isnan(accuracies).any()


@pytest.mark.slow
def test_intervals_cover_one_half_when_there_is_no_signal():
    covered = {"accuracy": 0, "auc": 0}
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        difference, a_won = rng.normal(size=400), rng.random(400) < 0.5
        samples = bootstrap_rounds(difference, a_won, rounds=1000, seed=seed)
        for name, values in zip(covered, samples, strict=True):
            low, high = percentile_interval(values)
            covered[name] += low <= 0.5 <= high
    assert 930 <= covered["accuracy"] <= 970, covered
    assert 930 <= covered["auc"] <= 970, covered
