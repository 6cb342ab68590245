from __future__ import annotations

import math

import pytest
import torch

from apex_reward.errors import UsageError
from apex_reward.scores.apex import HEADS, POPULARITY_HEADS, head_range, task_heads
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores


def test_stack_keeps_head_order_and_the_graph():
    values = torch.arange(14.0).reshape(2, 7).requires_grad_()
    scores = Scores.from_stack(values)
    assert torch.equal(scores.stack(), values)
    assert scores["clarity"].tolist() == [5.0, 12.0]
    assert scores.songs == 2
    assert len(scores) == 7
    scores.score_likes.sum().backward()
    assert values.grad.sum(0).tolist() == [0, 2, 0, 0, 0, 0, 0]


def test_two_heads_leave_the_aesthetic_ones_out():
    scores = Scores.from_stack(torch.tensor([[50.0, 60.0]]))
    assert scores.names == POPULARITY_HEADS
    assert "coherence" not in scores
    assert scores.rows() == [{"score_streams": 50.0, "score_likes": 60.0}]
    with pytest.raises(UsageError, match="no head 'coherence'.*score_streams, score_likes"):
        scores["coherence"]


def test_apply_reaches_every_head():
    doubled = Scores.from_stack(torch.ones(1, 7)).apply(lambda x: 2 * x)
    assert doubled.stack().tolist() == [[2.0] * 7]


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 7)])
def test_a_wrong_stack_is_refused(shape):
    with pytest.raises((ValueError, IndexError)):
        Scores.from_stack(torch.zeros(shape))


def test_names_and_ranges():
    assert task_heads("full") == HEADS
    assert [head_range(head) for head in HEADS] == [(0, 100)] * 2 + [(1, 5)] * 5
    with pytest.raises(UsageError, match="'all'"):
        task_heads("all")


def ensemble(*members):
    """Scores of two heads, a and b, from a list of songs per member."""
    return Scores.from_members(torch.tensor(members), [Head("a", 0, 10), Head("b")])


def test_an_ensemble_has_means_and_spreads():
    """Members say 1 and 3 of the first song, 2 and 2 of the second; of b 0, 4 and 5, 5."""
    scores = ensemble([[1.0, 0.0], [2.0, 5.0]], [[3.0, 4.0], [2.0, 5.0]])
    assert scores.a.tolist() == [2.0, 2.0]
    assert scores.std.a.tolist() == [1.0, 0.0]
    assert scores.std.b.tolist() == [2.0, 0.0]
    assert [head.low for head in scores.std.heads] == [0.0, 0.0]
    assert scores.member(1).b.tolist() == [4.0, 5.0]
    assert scores.member(1).members is None
    assert scores.rows() == [
        {"a": 2.0, "b": 2.0, "a_std": 1.0, "b_std": 2.0},
        {"a": 2.0, "b": 5.0, "a_std": 0.0, "b_std": 0.0},
    ]
    doubled = scores.apply(lambda x: 2 * x)
    assert doubled.members[1].tolist() == [[6.0, 8.0], [4.0, 10.0]]
    assert Scores.from_stack(torch.ones(1, 7)).std is None


def test_models_stand_side_by_side_with_their_own_members():
    three = Scores.from_members(torch.tensor([[[1.0]], [[2.0]], [[6.0]]]), [Head("three")])
    two = Scores.from_members(torch.tensor([[[10.0]], [[20.0]]]), [Head("two")])
    one = Scores({"one": torch.tensor([7.0])}, [Head("one", 0, 9)])
    found = Scores.side_by_side([one, two, three])
    assert found.names == ("one", "two", "three")
    assert found.heads[0] == Head("one", 0, 9)
    assert found.stack().tolist() == [[7.0, 15.0, 3.0]]
    assert found.members is None
    assert [(own, len(members)) for own, members in found.ensembles] == [
        (("two",), 2),
        (("three",), 3),
    ]
    assert found.member(1).stack().tolist() == [[7.0, 20.0, 2.0]]
    assert found.member(2).stack().tolist() == [[7.0, 15.0, 6.0]]
    assert found.member(0, ensemble=1).stack().tolist() == [[7.0, 15.0, 1.0]]
    assert found.std.stack().tolist() == [[0.0, 5.0, pytest.approx((14 / 3) ** 0.5)]]
    plain = Scores.side_by_side([one, one.renamed("other")])
    assert plain.names == ("one", "other.one")
    assert plain.heads[1] == Head("other.one", 0, 9)
    assert plain.members is None


def test_batches_follow_each_other():
    first = ensemble([[1.0, 0.0]], [[3.0, 0.0]])
    second = ensemble([[5.0, 0.0], [6.0, 0.0]], [[7.0, 0.0], [8.0, 0.0]])
    found = Scores.of_songs([first, second])
    assert found.a.tolist() == [2.0, 6.0, 7.0]
    assert found.members[1, :, 0].tolist() == [3.0, 7.0, 8.0]
    assert found.heads == first.heads
    assert Scores.of_songs([first, second.apply(lambda x: x).member(0)]).members is None


@pytest.mark.parametrize(
    ("values", "heads", "message"),
    [
        ({"a": [1.0]}, ["b"], "scores for a; the heads are b"),
        ({}, [], "scores for no head; the heads are none"),
        ({"a": [1.0], "b": [1.0, 2.0]}, ["a", "b"], r"shapes \(1,\), \(2,\); expected \(B,"),
        ({"a": [[1.0]]}, ["a"], r"shapes \(1, 1\); expected \(B,\) each"),
    ],
)
def test_parts_that_do_not_fit_are_refused(values, heads, message):
    given = {name: torch.tensor(value) for name, value in values.items()}
    with pytest.raises(UsageError, match=message):
        Scores(given, list(map(Head, heads)))


def test_heads_that_are_absent():
    scores = Scores({"groove": torch.tensor([0.5])})
    assert scores.get("groove").tolist() == [0.5]
    assert scores.get("clarity", 3) == 3
    with pytest.raises(AttributeError, match="no head 'clarity' in these scores; present: groove"):
        _ = scores.clarity


def test_a_notebook_shows_twenty_songs():
    table = Scores({"a<b": torch.arange(21.0) / 8}, [Head("a<b")])._repr_html_()
    assert table.startswith("<table><tr><th>a&lt;b</th></tr><tr><td>0.000</td></tr>")
    assert table.endswith("<td>2.375</td></tr></table><p>20 of 21 songs.</p>")
    small = Scores({"a": torch.arange(20.0)})._repr_html_()
    assert small.endswith("<td>19.000</td></tr></table>")


def test_names_and_ranges_of_heads():
    for name in ("", "a,b", "a=1", "a b"):
        with pytest.raises(UsageError, match="expected a name without comma, = or space"):
            Head(name)
    for low, high in ((1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(UsageError, match=f"head a ranges from {low} to {high}; swap them"):
            Head("a", low, high)
    ends = [Head("a", low, high).bounded for low in (-math.inf, 0) for high in (1, math.inf)]
    assert ends == [False, False, True, False]
