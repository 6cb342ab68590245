"""Reduced precision gives the numbers of float32, or gives way to it."""

from __future__ import annotations

import warnings

import pytest
import torch

from apex_reward import ApexReward
from apex_reward.demo.songs import make_song
from apex_reward.model import precision
from apex_reward.model.encoders.weight_norm import WeightNormConv1d
from apex_reward.model.precision import checked_dtype
from tests.support import tiny_model

RATE = 24_000
REDUCED = [torch.bfloat16, torch.float16]
WITHIN = {torch.bfloat16: 0.02, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def unprobed(monkeypatch):
    monkeypatch.setattr(precision, "_verdicts", {})


@pytest.fixture
def broken(monkeypatch):
    """A convolution that is wrong by its own size in bfloat16, silently."""
    forward = WeightNormConv1d.forward

    def wrong(self, x):
        y = forward(self, x)
        reduced = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        return y + 8 * y.roll(1, dims=1) if reduced else y

    monkeypatch.setattr(WeightNormConv1d, "forward", wrong)


@pytest.fixture(scope="module")
def eight_songs():
    songs = [torch.as_tensor(make_song(seed=seed, seconds=6.0)) for seed in range(8)]
    return torch.stack([song.float().reshape(-1)[: 6 * RATE] for song in songs])


@pytest.mark.parametrize("dtype", REDUCED)
def test_eight_songs_are_judged_alike_in_every_dtype(eight_songs, dtype):
    wanted = ApexReward.from_pretrained("apex-tiny").reward(eight_songs, RATE)
    assert wanted.std() > 0.02  # else agreement would say nothing
    cast = ApexReward.from_pretrained("apex-tiny", dtype=dtype).reward(eight_songs, RATE)
    with torch.autocast("cpu", dtype=dtype):
        auto = ApexReward.from_pretrained("apex-tiny").reward(eight_songs, RATE)
    gaps = wanted[:, None] - wanted
    for found in (cast, auto):
        assert (found - wanted).abs().max() < WITHIN[dtype]
        same = ((found[:, None] - found) * gaps > 0) | (gaps.abs() < WITHIN[dtype])
        assert same.all()


@pytest.mark.parametrize("dtype", [*REDUCED, torch.float32, torch.float64])
def test_sound_precision_is_believed_without_a_word(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked_dtype(tiny_model().encoder, "cpu", dtype) == dtype


@pytest.mark.usefixtures("broken")
def test_a_wrong_kernel_is_found_once_and_said_once():
    encoder = tiny_model().encoder
    with pytest.warns(UserWarning, match="bfloat16 on cpu is wrong for this encoder"):
        assert checked_dtype(encoder, "cpu", torch.bfloat16) == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked_dtype(tiny_model(seed=1).encoder, "cpu", torch.bfloat16) == torch.float32
    assert checked_dtype(encoder, "cpu", torch.float16) == torch.float16
    assert encoder.dtype == torch.float32


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_a_model_with_a_wrong_kernel_scores_as_in_float32(way):
    model = tiny_model()
    songs = (torch.randn(2, RATE) * 0.1).requires_grad_()
    if way == "weights":
        model.encoder.to(torch.bfloat16)
        whole = tiny_model()
        # What bfloat16 storage rounds off the weights is lost, whatever computes with them.
        whole.encoder.load_state_dict(model.encoder.state_dict())
    else:
        whole = tiny_model()
    wanted = whole.reward(songs, RATE)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), songs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        with pytest.warns(UserWarning, match="float32 is used instead"):
            found = model.reward(songs, RATE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = model.reward(songs, RATE)
    (gradient,) = torch.autograd.grad(found.sum(), songs)
    assert torch.equal(found, again)
    assert (found - wanted).abs().max() < 2e-3
    assert (gradient - wanted_gradient).norm() < 0.05 * wanted_gradient.norm()


def test_features_that_are_not_finite_are_wrong(monkeypatch):
    encoder = tiny_model().encoder
    forward = WeightNormConv1d.forward
    monkeypatch.setattr(
        WeightNormConv1d,
        "forward",
        lambda self, x: forward(self, x) * (torch.nan if x.dtype == torch.float16 else 1),
    )
    with pytest.warns(UserWarning, match="differ from float32's by inf%"):
        assert checked_dtype(encoder, "cpu", torch.float16) == torch.float32
