"""Familiarity by hand, and pooling and scores of no songs."""

from __future__ import annotations

import pytest
import torch

from apex_reward.model.familiar import Familiarity
from apex_reward.model.pooling import LayerPooling
from tests.support import tiny_model


def test_distances_by_hand() -> None:
    """Mean (1, 0), deviations 1 and 2: (1, 4) is 2 deviations off, (4, 8) is 5; threshold 2."""
    familiar = Familiarity(2)
    assert familiar(torch.tensor([[3.0, 4.0]])).tolist() == [5.0]
    familiar.mean.copy_(torch.tensor([1.0, 0.0]))
    familiar.whitening.copy_(torch.diag(torch.tensor([1.0, 0.5])))
    familiar.threshold.fill_(2.0)
    assert familiar(torch.tensor([[1.0, 4.0], [4.0, 8.0]])).tolist() == [1.0, 2.5]


def test_pooling_of_another_number_of_layers_is_their_mean() -> None:
    layers = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert LayerPooling(2)(layers).tolist() == [[2.0, 4.0]]
    published = LayerPooling()(torch.ones(1, 4, 1)).item()
    assert published == pytest.approx(
        0.38226926 + 0.41500396 - 0.11713624 + 0.45930564 - 0.10955179
    )


def test_a_model_s_distances_and_scores_of_embeddings() -> None:
    model = tiny_model(familiar=True, members=2)
    assert model.familiar is not None
    model.familiar.threshold.fill_(5.0)
    embeddings = torch.zeros(2, model.config.width)
    embeddings[0, :2] = torch.tensor([3.0, 4.0])
    assert model.unfamiliarity(embeddings).tolist() == [1.0, 0.0]
    assert tiny_model().unfamiliarity(embeddings) is None
    scores = model.score_embeddings(embeddings)
    assert scores.members.shape == (2, 2, 7)
    torch.testing.assert_close(scores.stack(), scores.members.mean(dim=0))
    assert model.score_embeddings(embeddings[:0]).members.shape == (2, 0, 7)
    assert model.encode_segments(torch.zeros(0, 100)).shape == (0, 4, model.config.width)
