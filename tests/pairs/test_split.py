"""Splits: connected sets, seeds, shares."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward.pairs.build import connected, split

labels = st.one_of(st.none(), st.integers(0, 6))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=20))
def test_connected_sets_are_those_of_a_flood_fill(rows):
    expected = [-1] * len(rows)
    for start in range(len(rows)):
        if expected[start] >= 0:
            continue
        number, queue = max(expected) + 1, [start]
        while queue:
            item = queue.pop()
            expected[item] = number
            own = set(rows[item]) - {None}
            queue += [i for i, row in enumerate(rows) if expected[i] < 0 and own & set(row)]
    columns = [
        np.array([-1 if label is None else label for label in column])
        for column in zip(*rows, strict=True)
    ]
    assert connected(columns).tolist() == expected


def test_no_label_is_on_both_sides_and_the_share_is_met():
    random = np.random.default_rng(1)
    prompts = random.integers(0, 300, 1000)
    groups = np.where(prompts % 5 > 0, 1000 + prompts // 3, -1)
    test, note = split(connected([prompts, groups]), 0.2, seed=3)
    assert note == ""
    for column in (prompts, groups):
        assert not (set(column[test].tolist()) & set(column[~test].tolist())) - {-1}
    assert 0.19 < test.mean() <= 0.2


def test_the_seed_decides_and_repeats():
    prompts = np.arange(100)
    first = split(prompts, 0.3, seed=1)[0]
    assert (first == split(prompts, 0.3, seed=1)[0]).all()
    assert (first != split(prompts, 0.3, seed=2)[0]).any()
    assert first.sum() == 30


def test_a_set_that_is_too_large_stays_in_train():
    test, note = split(np.zeros(10, np.int64), 0.5, seed=0)
    assert not test.any()
    assert "has 0 of the 5 pairs" in note
    assert "10 pairs form 1 sets connected by prompt, file or group, the largest has 10" in note
    assert split(np.zeros(0, np.int64), 0.5, seed=0)[0].shape == (0,)


def test_a_small_set_says_which_share_gives_a_test_pair():
    test, note = split(np.arange(4), 0.1, seed=0)
    assert not test.any()
    assert "4 pairs are too few for a share of 0.1; one test pair needs --test-share 0.25" in note
    assert split(np.arange(4), 0.25, seed=0)[0].sum() == 1
