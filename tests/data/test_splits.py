"""Stratified balance and split: shares, evenness, determinism."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from apex_reward.data.splits import balance_platforms, split_songs


def test_split_shares_in_every_stratum() -> None:
    rng = np.random.default_rng(0)
    platforms = ["suno"] * 4000 + ["udio"] * 2000
    scores = rng.uniform(0, 100, 6000)
    splits = np.array(split_songs(platforms, scores, seed=1))
    assert Counter(splits.tolist()) == {"train": 5100, "test": 600, "val": 300}
    for name in ("suno", "udio"):
        for low in range(0, 100, 20):
            chosen = (np.array(platforms) == name) & (scores >= low) & (scores < low + 20)
            share = (splits[chosen] == "train").mean()
            assert abs(share - 0.85) < 0.03


@given(st.integers(1, 70), st.integers(0, 5))
def test_split_is_total_and_seeded(count: int, seed: int) -> None:
    scores = np.arange(count)[::-1]
    splits = split_songs(["x"] * count, scores, seed)
    assert splits == split_songs(["x"] * count, scores, seed)
    counts = Counter(splits)
    for name, share in (("train", 0.85), ("test", 0.10), ("val", 0.05)):
        assert abs(counts[name] - share * count) <= 1


def test_ten_songs_leave_none_of_the_splits_empty() -> None:
    assert Counter(split_songs(["x"] * 10, range(10), 0)) == {"train": 8, "test": 1, "val": 1}


def test_balance_keeps_the_distribution() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.uniform(0, 100, 3000), rng.uniform(0, 50, 300)])
    platforms = ["suno"] * 3000 + ["udio"] * 300
    kept = balance_platforms(platforms, scores, seed=3)
    assert Counter(platforms[i] for i in kept) == {"suno": 300, "udio": 300}
    assert (np.diff(kept) > 0).all()
    suno = scores[kept[kept < 3000]]
    # One from each run of ten neighbours: quantiles stay within a run of the full sample's.
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(suno, q) - np.quantile(scores[:3000], q)) < 1.0
    assert not np.array_equal(kept, balance_platforms(platforms, scores, seed=4))


def test_one_platform_is_left_alone() -> None:
    assert balance_platforms(["x"] * 5, range(5), 0).tolist() == [0, 1, 2, 3, 4]
