"""Strategies: hand-worked prompts, and agreement with loops on made-up ones."""

from __future__ import annotations

from functools import partial
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward.errors import UsageError
from apex_reward.pairs.strategies import STRATEGIES, StrategySettings, find_strategy
from tests.pairs.reference import propose

AXES = ["musicality", "clarity"]
# Musicality and clarity of five songs: b is best, d is worst and ties with e on clarity.
FIVE = np.array([[3.0, 5.0, 4.0, 1.0, 2.0], [3.0, 2.0, 5.0, 1.0, 1.0]])


def winners(name: str, values: np.ndarray, **changes: object) -> list[str]:
    wins = STRATEGIES[name](values, StrategySettings(**changes))
    return [f"{'abcde'[i]}{'abcde'[j]}" for i, j in np.argwhere(wins)]


def test_best_worst_takes_the_extremes():
    assert winners("best-worst", FIVE) == ["bd"]


def test_best_worst_takes_the_first_of_equals_and_nothing_where_all_are_equal():
    assert winners("best-worst", np.array([[1.0, 3.0, 3.0, 1.0]])) == ["ba"]
    assert winners("best-worst", np.full((1, 4), 2.0)) == []


def test_all_takes_every_pair_over_the_margin():
    assert winners("all", FIVE, min_margin=3.0) == ["bd", "be", "cd"]


def test_all_never_pairs_ties_even_without_a_margin():
    assert winners("all", np.array([[1.0, 1.0, 2.0]])) == ["ca", "cb"]


def test_top_bottom_sets_k_against_k():
    assert winners("top-bottom", FIVE, top_k=2) == ["bd", "be", "cd", "ce"]


def test_top_bottom_uses_half_of_a_small_prompt():
    assert winners("top-bottom", FIVE[:, :3], top_k=2) == ["ba"]


def test_margin_adapts_to_the_prompt():
    # Differences of 1, 2, 3, 4, 5 are 4 x 1, 3 x 2, 2 x 3, 1 x 4: the 0.75 quantile is 2.75.
    assert winners("margin", FIVE, quantile=0.75) == ["bd", "be", "cd"]
    assert winners("margin", FIVE * 10, quantile=0.75) == ["bd", "be", "cd"]


def test_mrsd_needs_the_median_lead_on_the_other_axis():
    # Clarity differs by 0, 1, 1, 1, 2, 2, 2, 3, 4, 4: the median is 2. b leads d and e by 1 only.
    assert winners("mrsd", FIVE, quantile=0.75) == ["cd"]
    assert winners("mrsd", FIVE, quantile=0.95) == []


def test_pareto_wants_no_loss_and_one_clear_lead():
    # a-d, a-e, b-d, b-e, c-a, c-d, c-e dominate; e-d leads by 1 on musicality and ties on clarity.
    assert winners("pareto", FIVE, min_margin=2.0) == ["ad", "ae", "bd", "be", "ca", "cd", "ce"]
    assert "ed" in winners("pareto", FIVE, min_margin=1.0)
    assert winners("pareto", np.full((2, 3), 2.0)) == []


def test_two_axis_sets_those_that_reach_both_against_the_rest():
    found = winners("two-axis", FIVE, thresholds=[3.0, 3.0])
    assert found == ["ab", "ad", "ae", "cb", "cd", "ce"]


grid = st.integers(0, 6).map(lambda number: number / 2)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 6), prompts=st.integers(1, 3))
def test_agrees_with_loops_on_any_prompt_alone_and_stacked(name, data, size, prompts):
    values = np.array(
        data.draw(st.lists(grid, min_size=prompts * 2 * size, max_size=prompts * 2 * size))
    ).reshape(prompts, 2, size)
    share, top_k = data.draw(st.sampled_from([0.0, 0.5, 0.75, 0.95, 1.0])), data.draw(grid)
    chosen = StrategySettings(
        min_margin=data.draw(grid), top_k=int(top_k) + 1, quantile=share, thresholds=[1.0, 2.0]
    )
    stacked = STRATEGIES[name](values, chosen)
    for prompt, wins in zip(values, stacked, strict=True):
        songs = [
            {"audio": n, "musicality": float(prompt[0, n]), "clarity": float(prompt[1, n])}
            for n in range(size)
        ]
        expected = propose(
            songs,
            name,
            AXES,
            min_margin=chosen.min_margin,
            top_k=chosen.top_k,
            quantile=share,
            threshold={"musicality": 1.0, "clarity": 2.0},
        )
        assert {(int(i), int(j)) for i, j in np.argwhere(wins)} == expected
        assert (STRATEGIES[name](prompt, chosen) == wins).all()


def test_strategies_by_name_by_place_and_of_ones_own():
    def mine(values, chosen):
        return values

    assert find_strategy("pareto") == ("pareto", STRATEGIES["pareto"])
    assert find_strategy(mine) == ("mine", mine)
    assert find_strategy(partial(mine)) == ("custom", ANY)
    place = "apex_reward.pairs.strategies:all_pairs"
    assert find_strategy(place) == ("all", STRATEGIES["all"])
    assert find_strategy(STRATEGIES["two-axis"]) == ("two-axis", STRATEGIES["two-axis"])
    assert find_strategy("builtins:len") == ("builtins:len", len)
    for wrong, message in (
        ("best", "'best' is not one of best-worst, all, .*, nor package.module:function"),
        ("apex_reward.pairs.strategies:best", "expected package.module:function"),
        ("not_there_at_all:best", "expected package.module:function"),
    ):
        with pytest.raises(UsageError, match=message):
            find_strategy(wrong)
