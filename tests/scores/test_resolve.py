"""Which mix is meant for a model, and what it makes of an ensemble's scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from apex_reward.errors import UsageError
from apex_reward.scores.head import Head
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.resolve import mix_scores, named_mixes, resolve_mix, spread
from apex_reward.scores.scores import Scores

HEADS = (Head("a", 0, 10), Head("b", 0, 10))
PREFERENCE = RewardMix({"a": 2.0}, "none", embedding_weights=(1.0, -1.0))


def model(**more: object) -> SimpleNamespace:
    return SimpleNamespace(heads=HEADS, **more)


def test_without_a_mix_the_saved_goes_before_the_default_before_the_mean() -> None:
    mixes = {"mine": {"b": 3.0}}
    assert resolve_mix(None, model()).weights == {"a": 0.5, "b": 0.5}
    assert resolve_mix(None, model(default_mix="mine", mixes=mixes)).weights == {"b": 3.0}
    given = model(default_mix="mine", mixes=mixes, saved_mix="a=4")
    assert resolve_mix(None, given).weights == {"a": 4.0}
    assert resolve_mix("mine", given).weights == {"b": 3.0}
    assert resolve_mix("overall", given).weights == {"a": 0.5, "b": 0.5}
    assert named_mixes(given) == {"overall": {"a": 0.5, "b": 0.5}, "mine": {"b": 3.0}}


def test_a_preference_head_by_name_by_content_or_saved_as_the_mix() -> None:
    saved = PREFERENCE.to_dict()
    assert resolve_mix("preference", model(preference=saved)) == PREFERENCE
    assert resolve_mix(PREFERENCE, model()) == PREFERENCE
    assert resolve_mix(saved, model()) == PREFERENCE
    assert resolve_mix(None, model(saved_mix=saved)) == PREFERENCE


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("preference", "needs a calibrated head, and this model holds none"),
        (RewardMix({"a": 1.0, "c": 1.0}, "none"), "unknown head c; this model has: a, b"),
        ("a=1,d=2", "unknown head d; this model has: a, b"),
        (
            "mine",
            "'mine' in the mix 'mine' is not HEAD=WEIGHT, each head once; the named mixes are",
        ),
    ],
)
def test_mixes_of_other_models_are_refused(mix: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_mix(mix, model())


def test_caution_takes_spreads_off_the_mean_over_members() -> None:
    """Mixed, the members say 1 and 3 of the first song, 4 and 4 of the second."""
    members = torch.tensor([[[1.0, 0.0], [4.0, 0.0]], [[2.0, 1.0], [2.0, 2.0]]])
    scores = Scores.from_members(members, HEADS)
    mix = RewardMix({"a": 1.0, "b": 1.0}, "none")
    assert mix_scores(mix, scores).tolist() == [2.0, 4.0]
    assert mix_scores(mix, scores, caution=0.5).tolist() == [1.5, 4.0]
    assert mix_scores(mix, scores.member(0), caution=0.5).tolist() == [1.0, 4.0]


def test_groups_and_embeddings_reach_the_mix() -> None:
    scores = Scores({"a": torch.tensor([1.0, 3.0, 7.0]), "b": torch.zeros(3)}, HEADS)
    grouped = RewardMix({"a": 1.0}, "group")
    groups = torch.tensor([0, 0, 1])
    assert mix_scores(grouped, scores, groups=groups).tolist() == [-1.0, 1.0, 0.0]
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    assert mix_scores(PREFERENCE, scores, embeddings).tolist() == [3.0, 5.0, 14.0]


def test_a_spread_of_nothing_has_a_gradient() -> None:
    """d spread / d reward is (reward - mean) / (M spread): -1/2 and 1/2 of 1 and 3."""
    rewards = torch.tensor([[1.0, 2.0], [3.0, 2.0]], requires_grad=True)
    found = spread([rewards])
    assert found.tolist() == [1.0, 0.0]
    found.sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [[-0.5, 0.0], [0.5, 0.0]]


def test_ensembles_of_other_sizes_keep_their_own_members() -> None:
    """a: 1, 2, 3 and b: 10, 20 have means 2 and 15, variances 2/3 and 25."""
    three = Scores.from_members(torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), [Head("x")])
    two = Scores.from_members(torch.tensor([[[10.0]], [[20.0]]]), [Head("x")])
    scores = Scores.side_by_side([three.renamed("a"), two.renamed("b")])
    mix = RewardMix({"a.x": 1.0}, "none")
    assert mix_scores(mix, scores).item() == scores["a.x"].item() == 2.0
    assert mix_scores(mix, scores, caution=1.0).item() == pytest.approx(2 - (2 / 3) ** 0.5)
    both = RewardMix({"a.x": 1.0, "b.x": 1.0}, "none")
    assert mix_scores(both, scores).item() == 17.0
    assert mix_scores(both, scores, caution=2.0).item() == pytest.approx(17 - 2 * (77 / 3) ** 0.5)
