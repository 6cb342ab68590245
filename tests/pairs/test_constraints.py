"""Constraints, limits and balance against loops and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward.errors import UsageError
from apex_reward.pairs.build import balanced, limited, neutral
from apex_reward.pairs.candidates import split_flags
from apex_reward.pairs.constraints import bound_value, matched, protected
from tests.pairs.reference import greedy


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3)),
        max_size=25,
        unique_by=lambda pair: pair[:3],
    ),
    st.one_of(st.none(), st.integers(1, 3)),
    st.one_of(st.none(), st.integers(1, 3)),
)
def test_limits_are_greedy_from_the_widest_margin(pairs, per_prompt, per_candidate):
    # Candidates of a prompt are numbered apart from those of the others.
    pairs = [(p, 10 * p + a, 10 * p + b, float(m)) for p, a, b, m in pairs if a != b]
    prompt, chosen, rejected, margin = (np.array([pair[i] for pair in pairs]) for i in range(4))
    keep = limited(
        prompt.astype(np.int64),
        chosen.astype(np.int64),
        rejected.astype(np.int64),
        margin.astype(np.float64),
        per_prompt,
        per_candidate,
    )
    kept = {pair for pair, stays in zip(pairs, keep.tolist(), strict=True) if stays}
    assert kept == set(greedy(pairs, per_prompt, per_candidate))


def test_balance_keeps_as_many_of_each_axis_as_the_rarest_has():
    leads = np.array([[3.0, 1.0], [1.0, 2.0], [5.0, 0.0], [4.0, 4.5], [2.0, 1.0]])
    # Axis 0 decides pairs 0, 2 and 4, axis 1 pairs 1 and 3: the weakest of axis 0 goes.
    assert balanced(leads).tolist() == [True, True, True, True, False]


def test_balance_leaves_one_deciding_axis_alone():
    assert balanced(np.array([[2.0, 0.0], [3.0, 1.0]])).all()
    assert balanced(np.zeros((0, 2))).shape == (0,)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3)), min_size=1))
def test_balance_agrees_with_loops(rows):
    leads = np.array(rows, float)
    deciding = [max(range(3), key=lambda axis: row[axis]) for row in rows]
    fewest = min(deciding.count(axis) for axis in set(deciding))
    expected = set()
    for axis in set(deciding):
        own = [i for i, name in enumerate(deciding) if name == axis]
        expected |= set(sorted(own, key=lambda i: (-max(rows[i]), i))[:fewest])
    assert set(np.flatnonzero(balanced(leads)).tolist()) == expected


def test_a_neutral_set_has_as_many_pairs_of_a_pattern_as_of_the_opposite_one():
    random = np.random.default_rng(0)
    signs = np.sign(random.normal([0.8, 0.4], 1, (400, 2)))
    signs[:40, 0] = 0
    keep = neutral(signs, random.uniform(size=400))
    assert 100 < keep.sum() < 400
    assert (signs[keep].sum(axis=0) == 0).all()
    assert not neutral(np.ones((3, 1)), np.ones(3)).any()
    assert neutral(np.zeros((0, 2)), np.zeros(0)).shape == (0,)


def test_matching_and_protection_are_inclusive_and_unknown_matches_nothing():
    seconds = np.array([10.0, 12.0, 12.5, np.nan])
    keep = matched("duration", seconds, 2.0, "s").allows
    assert keep(np.array([0, 0, 0]), np.array([1, 2, 3])).tolist() == [True, False, False]
    safe = protected("clarity", np.array([3.0, 3.5, 3.75]), 0.5).allows
    assert safe(np.array([0, 0, 2]), np.array([1, 2, 0])).tolist() == [True, False, True]


def test_a_bound_is_a_value_or_a_quantile():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert bound_value(2.5, values) == (2.5, "2.5")
    assert bound_value("2.5", values) == (2.5, "2.5")
    assert bound_value("q0.75", values) == (4.0, "4 (q0.75)")
    for text in ("high", "q1.5", "nan"):
        with pytest.raises(UsageError, match="expected a number, or q0.8"):
            bound_value(text, values)


def test_flags_from_a_list_or_from_csv():
    assert split_flags(["silent", "clipped"]) == split_flags("silent;clipped")
    assert split_flags(None) == split_flags("") == []
