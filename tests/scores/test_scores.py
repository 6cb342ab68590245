from __future__ import annotations

import pytest
import torch

from apex_reward.errors import UsageError
from apex_reward.scores.apex import HEADS, POPULARITY_HEADS, head_range, task_heads
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
    with pytest.raises(UsageError, match="shape"):
        Scores.from_stack(torch.zeros(shape))


def test_names_and_ranges():
    assert task_heads("full") == HEADS
    assert [head_range(head) for head in HEADS] == [(0, 100)] * 2 + [(1, 5)] * 5
    with pytest.raises(UsageError, match="'loud' is not a head"):
        head_range("loud")
    with pytest.raises(UsageError, match="'all'"):
        task_heads("all")
