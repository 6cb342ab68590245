"""RewardMix: hand-worked values, properties, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from apex_reward import ApexReward, RewardMix
from apex_reward.errors import UsageError
from apex_reward.files.tables import write_table
from apex_reward.scores.apex import APEX_HEADS, APEX_MIXES, HEADS, head_range
from apex_reward.scores.resolve import resolve_mix
from apex_reward.scores.scores import Scores
from tests.support import golden_song, tiny_model

WEIGHTS = st.dictionaries(
    st.sampled_from(HEADS), st.floats(-5, 5, allow_subnormal=False), min_size=1
)
NORMALIZATIONS = ["range", "zscore", "group", "none"]


def random_scores(seed: int, songs: int = 6) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(songs, len(HEADS), generator=generator, dtype=torch.float64)
    low, high = torch.tensor([head_range(head) for head in HEADS], dtype=torch.float64).T
    return Scores.from_stack(low + unit * (high - low))


def mix_of(weights: dict[str, float], normalization: str) -> RewardMix:
    mix = RewardMix(weights, normalization)
    return mix.with_reference(random_scores(99, 50)) if normalization == "zscore" else mix


def test_range_maps_each_head_to_the_unit_interval() -> None:
    scores = Scores.from_stack(torch.tensor([[100.0, 25.0, 1.0, 5.0, 3.0, 2.0, 4.0]]))
    mix = RewardMix.parse("score_likes=2,musicality=1,memorability=-4,naturalness=0.5")
    # 2 * 25/100 + 1 * (5-1)/4 - 4 * (3-1)/4 + 0.5 * (4-1)/4
    assert mix(scores).tolist() == pytest.approx([0.5 + 1.0 - 2.0 + 0.375])
    assert RewardMix({"score_likes": 2.0}, "none")(scores).tolist() == [50.0]


def test_named_mixes_are_means_of_their_heads() -> None:
    scores = Scores.from_stack(torch.tensor([[40.0, 60.0, 1.0, 2.0, 3.0, 4.0, 5.0]]))
    expected = {"popularity": 0.5, "aesthetics": 0.5, "overall": (0.4 + 0.6 + 2.5) / 7}
    for name, value in expected.items():
        assert RewardMix.parse(name)(scores).item() == pytest.approx(value)
        assert sum(APEX_MIXES[name].values()) == pytest.approx(1.0)


def test_zscore_by_hand() -> None:
    reference = Scores.from_stack(torch.tensor([[10.0, 0.0], [30.0, 0.0]]))
    mix = RewardMix({"score_streams": 3.0}).with_reference(reference)
    assert mix.normalization == "zscore"
    assert mix.reference == {"score_streams": (20.0, 10.0)}
    assert mix(Scores.from_stack(torch.tensor([[45.0, 7.0]]))).tolist() == [7.5]


def test_group_by_hand() -> None:
    streams = torch.tensor([1.0, 3.0, 8.0, 8.0, 5.0])
    scores = Scores({"score_streams": streams, "score_likes": streams})
    mix = RewardMix({"score_streams": 2.0}, "group")
    # Group 7 is 1, 3, 5: mean 3, population std sqrt(8/3); group 2 is constant: 0.
    rewards = mix(scores, torch.tensor([7, 7, 2, 2, 7]))
    unit = 2 * 2 / math.sqrt(8 / 3)
    assert rewards.tolist() == pytest.approx([-unit, 0.0, 0.0, 0.0, unit])
    assert mix(scores)[:1].item() == pytest.approx(2 * (1 - 5) / math.sqrt((16 + 4 + 9 + 9) / 5))


def test_a_lone_song_and_a_constant_group_get_zero_with_a_finite_gradient() -> None:
    values = torch.full((3, 2), 37.123, requires_grad=True)
    rewards = RewardMix.parse("popularity", "group")(
        Scores.from_stack(values), torch.tensor([0, 0, 1])
    )
    rewards.sum().backward()
    assert rewards.tolist() == [0.0, 0.0, 0.0]
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_a_song_that_is_nan_spoils_only_its_own_group() -> None:
    streams = torch.tensor([1.0, 2.0, math.nan, 2.0])
    mix = RewardMix({"score_streams": 1.0}, "group")
    rewards = mix(Scores({"score_streams": streams}), torch.tensor([0, 0, 1, 1]))
    assert rewards[:2].tolist() == pytest.approx([-1.0, 1.0])


@given(weights=WEIGHTS, seed=st.integers(0, 50), normalization=st.sampled_from(NORMALIZATIONS))
@settings(max_examples=60, deadline=None)
def test_permuting_the_batch_permutes_the_rewards(
    weights: dict[str, float], seed: int, normalization: str
) -> None:
    scores, groups = random_scores(seed), torch.tensor([0, 1, 0, 1, 2, 2])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    mix = mix_of(weights, normalization)
    shuffled = mix(scores.apply(lambda head: head[order]), groups[order])
    torch.testing.assert_close(shuffled, mix(scores, groups)[order])


@given(
    weights=WEIGHTS,
    seed=st.integers(0, 50),
    scale=st.floats(0.01, 100),
    shift=st.floats(-100, 100),
    normalization=st.sampled_from(["zscore", "group"]),
)
@settings(max_examples=60, deadline=None)
def test_affine_rescaling_of_the_heads_changes_nothing(
    weights: dict[str, float], seed: int, scale: float, shift: float, normalization: str
) -> None:
    scores, groups = random_scores(seed), torch.tensor([0, 0, 0, 1, 1, 1])
    rescaled = scores.apply(lambda head: scale * head + shift)
    mixes = [RewardMix(weights, normalization) for _ in range(2)]
    if normalization == "zscore":
        mixes = [mix.with_reference(s) for mix, s in zip(mixes, (scores, rescaled), strict=True)]
    torch.testing.assert_close(
        mixes[1](rescaled, groups), mixes[0](scores, groups), rtol=1e-6, atol=1e-6
    )


@given(first=WEIGHTS, second=WEIGHTS, normalization=st.sampled_from(NORMALIZATIONS))
@settings(max_examples=60, deadline=None)
def test_rewards_add_up_as_their_weights_do(
    first: dict[str, float], second: dict[str, float], normalization: str
) -> None:
    scores = random_scores(3)
    both = {head: first.get(head, 0.0) + second.get(head, 0.0) for head in {*first, *second}}
    parts = mix_of(first, normalization)(scores) + mix_of(second, normalization)(scores)
    torch.testing.assert_close(mix_of(both, normalization)(scores), parts)


@given(weights=WEIGHTS, seed=st.integers(0, 20), normalization=st.sampled_from(NORMALIZATIONS))
@settings(max_examples=60, deadline=None)
def test_no_reward_lies_below_the_lowest(
    weights: dict[str, float], seed: int, normalization: str
) -> None:
    mix = mix_of(weights, normalization)
    assert float(mix(random_scores(seed)).min()) >= mix.bounds(APEX_HEADS, 6)[0] - 1e-9
    assert float(mix(random_scores(seed)).max()) <= mix.bounds(APEX_HEADS, 6)[1] + 1e-9


def test_the_lowest_reward_is_reached_at_the_ends_of_the_ranges() -> None:
    worst = Scores.from_stack(torch.tensor([[0.0, 100.0]]))
    best = Scores.from_stack(torch.tensor([[100.0, 0.0]]))
    for normalization in ("range", "none"):
        mix = RewardMix({"score_streams": 2.0, "score_likes": -1.0}, normalization)
        low, high = mix.bounds(APEX_HEADS)
        assert low == pytest.approx(mix(worst).item())
        assert high == pytest.approx(mix(best).item())
    assert RewardMix({"clarity": 1.0}, "group").bounds(APEX_HEADS) == (-math.inf, math.inf)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weights", [*APEX_MIXES.values(), {"clarity": -1.5, "score_likes": 0.3}])
def test_gradcheck(weights: dict[str, float], normalization: str) -> None:
    mix = mix_of(dict(weights), normalization)
    values = random_scores(5).stack().requires_grad_()
    groups = torch.tensor([0, 0, 1, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda v: mix(Scores.from_stack(v), groups), values)


def test_saved_and_text_forms_return() -> None:
    mix = mix_of({"musicality": 1.0, "score_likes": 0.3}, "zscore")
    assert RewardMix.from_dict(json.loads(json.dumps(mix.to_dict()))) == mix
    assert str(mix) == "musicality=1,score_likes=0.3"
    apex = SimpleNamespace(heads=APEX_HEADS)
    read = resolve_mix(str(mix), apex)
    assert read == RewardMix(mix.weights) == resolve_mix(read.to_dict(), apex)
    assert resolve_mix(mix, apex) is mix


def test_reference_from_a_file_of_scores(tmp_path: Path) -> None:
    rows = [{"path": "a", "clarity": 2.0}, {"path": "b", "clarity": None}, {"clarity": 4.0}]
    for ending in ("jsonl", "csv", "parquet"):
        file = tmp_path / f"scores.{ending}"
        write_table(file, rows)
        assert RewardMix({"clarity": 1.0}).with_reference(file).reference == {"clarity": (3.0, 1.0)}
    with pytest.raises(UsageError, match="reference of musicality is mean nan"):
        RewardMix({"musicality": 1.0}).with_reference(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the mix is empty"),
        ("musicality", "'musicality' in the mix 'musicality' is not HEAD=WEIGHT"),
        ("=1", "'=1' in the mix"),
        ("clarity=1,clarity=2", "'clarity=2' in the mix"),
        ("clarity=much", "'clarity=much' in the mix"),
        ("clarity=nan", "weight of clarity is nan"),
        ("clarity=inf", "weight of clarity is inf"),
    ],
)
def test_wrong_text_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RewardMix.parse(text)


def test_wrong_uses_are_named() -> None:
    scores = random_scores(0)
    with pytest.raises(UsageError, match="unknown head tempo; this model has: "):
        RewardMix({"tempo": 1.0}).check(scores.heads)
    with pytest.raises(UsageError, match="normalization is 'softmax'"):
        RewardMix({"clarity": 1.0}, "softmax")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has no reference"):
        RewardMix({"clarity": 1.0}, "zscore")(scores)
    with pytest.raises(UsageError, match="reference of clarity is mean nan"):
        RewardMix({"clarity": 1.0}, "zscore", {"coherence": (0.0, 1.0)})
    with pytest.raises(UsageError, match="std 0"):
        RewardMix({"clarity": 1.0}).with_reference(scores.apply(torch.ones_like))
    with pytest.raises(RuntimeError):
        RewardMix({"clarity": 1.0}, "group")(scores, torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="no head 'clarity' in these scores"):
        RewardMix({"clarity": 1.0})(Scores({"score_streams": scores.score_streams}))
    with pytest.raises(UsageError, match="is no saved mix: KeyError.'weights'"):
        RewardMix.from_dict({"normalization": "range"})


def test_a_mix_saved_with_the_model_returns_with_it(tmp_path: Path) -> None:
    model, song = tiny_model(1), torch.tensor(golden_song(1, 24_000, 1, 0.5))
    mix = RewardMix({"clarity": 1.0, "score_likes": -0.5}).with_reference(random_scores(4))
    model.config.mix = mix.to_dict()
    model.save_pretrained(tmp_path)
    loaded = ApexReward.from_pretrained(tmp_path)
    assert RewardMix.from_dict(loaded.config.mix) == mix
    expected = mix(model(song, 24_000))
    torch.testing.assert_close(loaded.reward(song, 24_000), expected)
