import json

import pytest
import torch

from apex_reward.errors import UsageError
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.scores import Scores


def preference(weights, vector=None, fitted=None):
    return RewardMix(weights, "none", None, vector, fitted or {})


def scores(n=3, seed=0):
    return Scores.from_stack(torch.rand(n, 7, generator=torch.Generator().manual_seed(seed)))


def test_reward_is_the_weighted_sum_worked_out_by_hand():
    batch = Scores.from_stack(torch.tensor([[10.0, 1.0], [20.0, 2.0]]))
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    head = preference({"score_streams": 0.5, "score_likes": -1.0}, (2.0, 1.0))
    assert head(batch, embeddings=embeddings).tolist() == [5.0 - 1.0 + 2.0, 10.0 - 2.0 + 3.0]


def test_swapping_the_sides_gives_one_minus_the_probability():
    head = preference({"musicality": 1.5, "clarity": -0.7}, (0.3, -0.2))
    a, b = scores(seed=1), scores(seed=2)
    ea, eb = torch.randn(3, 2), torch.randn(3, 2)
    forward = torch.sigmoid(head(a, None, ea) - head(b, None, eb))
    backward = torch.sigmoid(head(b, None, eb) - head(a, None, ea))
    torch.testing.assert_close(forward, 1 - backward)


def test_gradients_are_the_weights():
    stack = torch.rand(2, 7, requires_grad=True)
    embeddings = torch.rand(2, 2, requires_grad=True)
    preference({"musicality": 1.5}, (0.3, -0.2))(
        Scores.from_stack(stack), None, embeddings
    ).sum().backward()
    assert stack.grad[:, 3].tolist() == [1.5, 1.5]
    assert stack.grad.abs().sum() == 3.0
    torch.testing.assert_close(embeddings.grad, torch.tensor([[0.3, -0.2]] * 2))


def test_survives_json():
    head = preference({"musicality": 1.5}, (0.25, -0.5), {"battles": 12})
    assert RewardMix.from_dict(json.loads(json.dumps(head.to_dict()))) == head
    # As `calibrate` wrote it before: heads as they are.
    old = {"weights": {"musicality": 1.5}, "embedding_weights": None, "fitted": {"battles": 12}}
    assert RewardMix.from_dict(old) == preference({"musicality": 1.5}, None, {"battles": 12})


def test_wrong_calls_say_what_is_missing():
    with pytest.raises(UsageError, match="weighs song embeddings, and none are given"):
        preference({"musicality": 1.0}, (1.0, 2.0))(scores())
    with pytest.raises(RuntimeError):
        preference({}, (1.0, 2.0))(scores(), embeddings=torch.zeros(3, 5))
    with pytest.raises(UsageError, match="no head 'tj' in these scores"):
        preference({"tj": 1.0})(scores())
    with pytest.raises(UsageError, match="the mix is empty"):
        preference({})
    with pytest.raises(UsageError, match="the weight of 1 is inf"):
        preference({"musicality": 1.0}, (0.0, float("inf")))
