"""A student: an `ApexReward` with a small encoder, which holds to all that a reward model is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from apex_reward import ApexReward, Reward, load_reward_model
from apex_reward.model.encoders.student import MEL, StudentConfig, StudentEncoder, mel_of
from apex_reward.model.predictor import StudentHeads
from apex_reward.scores.head import Head
from tests.support import small_student

RATE = 24_000
OWN = [["apex.musicality", 1.0, 5.0], ["jury", None, None], ["rulers.crest", 0.0, None]]


def songs(*lengths: int) -> Tensor:
    """Noise with the given real lengths, zero-padded."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.zeros(len(lengths), max(lengths))
    for song, length in zip(batch, lengths, strict=True):
        song[:length] = 0.1 * torch.randn(length, generator=generator)
    return batch


@pytest.mark.parametrize("tail", ["pad", "mask", "drop"])
def test_a_batch_gives_what_its_songs_give_one_by_one(tail):
    model, lengths = small_student(segment_tail=tail), [30_000, 60_001, 9_000]
    batch = songs(*lengths).requires_grad_()
    together = model(batch, RATE, lengths=lengths).stack()
    (gradient,) = torch.autograd.grad(together.sum(), batch)
    for song, length, scores, expected in zip(batch, lengths, together, gradient, strict=True):
        alone = song[None, :length].detach().requires_grad_()
        found = model(alone, RATE).stack()
        torch.testing.assert_close(found[0], scores, rtol=1e-5, atol=1e-5)
        (own,) = torch.autograd.grad(found.sum(), alone)
        torch.testing.assert_close(own[0], expected[:length], rtol=1e-3, atol=1e-6)
        assert not expected[length:].any()


def test_the_gradient_is_that_of_finite_differences():
    model = small_student().double()
    song, direction = songs(24_000).double(), songs(24_000, 24_000).double()[1:]
    leaf = song.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf, RATE).stack().sum(), leaf)
    step = 1e-5
    with torch.no_grad():
        ends = [model(song + s * direction, RATE).stack().sum() for s in (step, -step)]
    assert float((gradient * direction).sum()) == pytest.approx(
        float((ends[0] - ends[1]) / (2 * step)), rel=1e-4
    )


def test_padding_counts_by_the_segment_tail():
    model, short = small_student(segment_tail="mask"), songs(12_000)
    encoder, padded = model.encoder, torch.nn.functional.pad(short, (0, 12_000))
    masked = encoder(padded, torch.tensor([12_000]))
    assert torch.equal(model.embed_layers(short, RATE), masked)
    assert not torch.allclose(masked, encoder(padded), atol=1e-4)


def test_a_saved_student_gives_the_same_numbers_and_loads_through_a_reward_file(tmp_path: Path):
    model = small_student(own_heads=OWN, distilled={"teacher": "t", "licences": []})
    model.save_pretrained(tmp_path / "student")
    song, loaded = songs(50_000), load_reward_model(str(tmp_path / "student"))
    assert torch.equal(loaded(song, RATE).stack(), model(song, RATE).stack())
    assert [(h.name, h.low, h.high) for h in loaded.heads] == [
        ("apex.musicality", 1, 5), ("jury", -torch.inf, torch.inf), ("rulers.crest", 0, torch.inf)
    ]  # fmt: skip
    reward = Reward(loaded, mix="apex.musicality=1", loudness=-18.0, guards="penalty")
    reward.save(tmp_path / "reward.yaml")
    again = Reward.load(tmp_path / "reward.yaml")
    assert torch.equal(again(song, RATE), reward(song, RATE))
    assert (loaded.name, loaded.licences) == ("student", [])


def test_bfloat16_keeps_norms_in_float32_and_the_scores_within_a_tolerance():
    model, song = small_student(), songs(48_000)
    exact = model(song, RATE).stack()
    model.set_encoder_dtype("bfloat16")
    assert model.encoder.embedding.weight.dtype == torch.bfloat16
    assert model.encoder.conformer.layer_norm.weight.dtype == torch.float32
    torch.testing.assert_close(model(song, RATE).stack(), exact, rtol=0.02, atol=0.02)


def test_heads_stay_in_their_ranges_and_members_equal_heads_of_their_own():
    heads = [Head("a", 1, 5), Head("b"), Head("c", 0.0), Head("d", high=2.0)]
    torch.manual_seed(0)
    several, x = StudentHeads(8, heads, 4, members=3), 5 * torch.randn(6, 8)
    labels = torch.tensor([[1.0, -40.0, 0.0, 2.0], [5.0, 60.0, 30.0, -9.0], [3.0, 5.0, 7.0, 0.0]])
    several.fit(labels)
    values = several(x)
    assert values.shape == (3, 6, 4)
    assert bool((values[..., 0] >= 1).all() and (values[..., 0] <= 5).all())
    assert bool((values[..., 2] >= 0).all() and (values[..., 3] <= 2).all())
    for number in range(3):
        one = StudentHeads(8, heads, 4)
        state = dict(several.state_dict())
        rows = slice(4 * number, 4 * number + 4)
        state |= {"hidden.weight": state["hidden.weight"][rows]}
        state |= {"hidden.bias": state["hidden.bias"][rows]}
        state |= {name: state[name][number : number + 1] for name in ("weight", "bias")}
        one.load_state_dict(state)
        torch.testing.assert_close(one(x), values[number])


def test_an_ensemble_of_a_student_has_a_spread_and_caution():
    model, song = small_student(members=4), songs(30_000)
    scores = model(song, RATE)
    assert scores.std["musicality"].item() > 0
    careful, plain = Reward(model, mix="aesthetics", caution=1.0), Reward(model, mix="aesthetics")
    assert careful(song, RATE).item() < plain(song, RATE).item()


def test_the_default_size_needs_a_150th_of_the_multiplications():
    encoder = StudentEncoder(StudentConfig(hidden_size=768))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 720_000))
    # The published transformer alone: 12 layers, 2,249 frames, 12 * 768 ** 2 weights per layer.
    published = 12 * 2249 * 2 * 12 * 768**2
    assert published > 150 * counter.get_total_flops() > 0
    assert sum(weight.numel() for weight in encoder.parameters()) < 3_500_000
    assert mel_of(torch.zeros(1, 48_000)).shape == (1, MEL.bands, 100)


def test_a_student_without_apex_heads_takes_their_mean_by_default():
    model = small_student(own_heads=OWN)
    assert isinstance(model, ApexReward)
    assert model.default_mix == "overall"
    assert small_student().default_mix == "aesthetics"
