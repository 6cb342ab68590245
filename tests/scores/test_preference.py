import json

import pytest
import torch

from apex_reward.errors import DataError, UsageError
from apex_reward.scores.preference import PreferenceHead
from apex_reward.scores.scores import Scores


def scores(n=3, seed=0):
    return Scores.from_stack(torch.rand(n, 7, generator=torch.Generator().manual_seed(seed)))


def test_reward_is_the_weighted_sum_worked_out_by_hand():
    batch = Scores.from_stack(torch.tensor([[10.0, 1.0], [20.0, 2.0]]))
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    head = PreferenceHead({"score_streams": 0.5, "score_likes": -1.0}, (2.0, 1.0))
    assert head(batch, embeddings).tolist() == [5.0 - 1.0 + 2.0, 10.0 - 2.0 + 3.0]


def test_swapping_the_sides_gives_one_minus_the_probability():
    head = PreferenceHead({"musicality": 1.5, "clarity": -0.7}, (0.3, -0.2))
    a, b = scores(seed=1), scores(seed=2)
    ea, eb = torch.randn(3, 2), torch.randn(3, 2)
    forward = torch.sigmoid(head(a, ea) - head(b, eb))
    backward = torch.sigmoid(head(b, eb) - head(a, ea))
    torch.testing.assert_close(forward, 1 - backward)


def test_gradients_are_the_weights():
    stack = torch.rand(2, 7, requires_grad=True)
    embeddings = torch.rand(2, 2, requires_grad=True)
    PreferenceHead({"musicality": 1.5}, (0.3, -0.2))(
        Scores.from_stack(stack), embeddings
    ).sum().backward()
    assert stack.grad[:, 3].tolist() == [1.5, 1.5]
    assert stack.grad.abs().sum() == 3.0
    torch.testing.assert_close(embeddings.grad, torch.tensor([[0.3, -0.2]] * 2))


def test_survives_json_and_files(tmp_path):
    head = PreferenceHead({"musicality": 1.5}, (0.25, -0.5), {"battles": 12})
    assert PreferenceHead.from_dict(json.loads(json.dumps(head.to_dict()))) == head
    path = tmp_path / "preference.json"
    path.write_text(json.dumps(head.to_dict()))
    assert PreferenceHead.from_file(path) == head


def test_wrong_calls_say_what_is_missing():
    with pytest.raises(UsageError, match=r"needs \(B, 2\) song embeddings; none given"):
        PreferenceHead({"musicality": 1.0}, (1.0, 2.0))(scores())
    with pytest.raises(UsageError, match=r"shape \(3, 5\); expected \(B, 2\)"):
        PreferenceHead({}, (1.0, 2.0))(scores(), torch.zeros(3, 5))
    with pytest.raises(UsageError, match="no head 'tj' in these scores"):
        PreferenceHead({"tj": 1.0})(scores())
    with pytest.raises(UsageError, match="needs a weight"):
        PreferenceHead({})
    with pytest.raises(UsageError, match="must be finite: musicality, 1"):
        PreferenceHead({"musicality": float("nan")}, (0.0, float("inf")))


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "preference.json"
    with pytest.raises(DataError, match="does not exist"):
        PreferenceHead.from_file(path)
    for text, message in [
        ("{", "cannot be read as .json"),
        ("[1]", "is not a JSON object"),
        ('{"slope": 1}', "given: slope"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            PreferenceHead.from_file(path)
