"""Popularity scores against worked values and a slow definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_reward.data.labels import ALPHA, percentiles, popularity_scores, scores_of_counts
from apex_reward.errors import UsageError


def test_worked_values() -> None:
    assert pytest.approx(3.10628, abs=1e-5) == ALPHA
    scores = popularity_scores([80.0, 100.0, 0.0, 40.0])
    # (0.4 = 0.8 x 0.5, so its score is 50 x 0.5^alpha)
    np.testing.assert_allclose(scores, [50.0, 100.0, 0.0, 50 * 0.5**ALPHA], atol=1e-12)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_percentiles_equal_a_slow_definition(counts: list[int]) -> None:
    """The mean rank of a value's equals, over n; ranks counted one by one."""
    ordered = sorted(counts)
    slow = []
    for count in counts:
        ranks = [rank for rank, other in enumerate(ordered, start=1) if other == count]
        slow.append(100 * sum(ranks) / len(ranks) / len(counts))
    np.testing.assert_allclose(percentiles(counts), slow)
    expected = [100 * (p / 100) ** (math.log(0.5) / math.log(0.8)) for p in slow]
    np.testing.assert_allclose(scores_of_counts(counts), expected)


def test_per_platform_ranks_within_each() -> None:
    counts, groups = [1, 10, 100, 1000], ["a", "a", "b", "b"]
    expected = popularity_scores([50, 100, 50, 100])
    np.testing.assert_allclose(scores_of_counts(counts, groups), expected)


def test_bad_values() -> None:
    with pytest.raises(UsageError, match="finite numbers"):
        percentiles([1.0, math.nan])
    with pytest.raises(UsageError, match="did you pass counts"):
        popularity_scores([101.0])
