"""The predictor from embedding to scores, one alone and several together, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apex_reward.errors import UsageError
from apex_reward.model.predictor import (
    Familiarity,
    LayerPooling,
    Predictor,
    PredictorEnsemble,
    members_of,
    published_trunk_widths,
)
from tests.support import tiny_model

POPULARITY = ((0.0, 100.0), (0.0, 100.0))
AESTHETIC = ((1.0, 5.0),) * 5


def plain(task: str, logit: float = 0.0) -> Predictor:
    """A predictor whose heads give `logit` to everything."""
    predictor = Predictor(3, task, 1, trunk_widths=(4,), head_widths=(2,)).eval()
    for branch in (module for name, module in predictor.named_children() if "branch" in name):
        last = branch.branch[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, logit)
    return predictor


def test_logits_are_spread_over_each_heads_range() -> None:
    """sigmoid(log 3) is three quarters: 75 of 0 to 100, 4 of 1 to 5."""
    embeddings = torch.randn(2, 3)
    for logit, share in ((0.0, 0.5), (float(torch.tensor(3.0).log()), 0.75)):
        expected = [low + share * (high - low) for low, high in POPULARITY + AESTHETIC]
        found = plain("full", logit)(embeddings)
        torch.testing.assert_close(found, torch.tensor([expected] * 2))
    assert plain("popularity")(embeddings).tolist() == [[50.0, 50.0]] * 2


def test_an_ensemble_gives_each_members_scores_in_order() -> None:
    members = [plain("popularity", logit) for logit in (-20.0, 0.0, 20.0)]
    ensemble = PredictorEnsemble(members)
    scores = ensemble(torch.randn(4, 3))
    assert scores.shape == (3, 4, 2)
    torch.testing.assert_close(scores[:, 0, 0], torch.tensor([0.0, 50.0, 100.0]))
    assert members_of(ensemble) == members
    assert members_of(members[1]) == [members[1]]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="ensemble of 1 members; expected 2 or more"):
        PredictorEnsemble([plain("full")])
    with pytest.raises(UsageError, match="shared is 4; the published trunks have 2 or 3"):
        published_trunk_widths(4)
    with pytest.raises(UsageError, match="do not fit shared=2"):
        Predictor(3, trunk_widths=(4,))


def test_published_widths() -> None:
    assert published_trunk_widths(2) == (512, 256)
    assert published_trunk_widths(3) == (512, 384, 256)


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
