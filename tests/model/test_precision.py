"""Reduced precision gives the numbers of float32, or gives way to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerEncoderLayer,
)

from apex_reward import ApexReward, load_reward_model
from apex_reward.demo.songs import make_song
from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model import precision, save_predictor
from apex_reward.model.encoders.clap import ClapEncoder
from apex_reward.model.encoders.weight_norm import WeightNormConv1d
from apex_reward.model.precision import checked_dtype, one_device, usable_dtype
from apex_reward.rewards.foreign.clap import Clap
from tests.clap_support import tiny_clap_model, tiny_extractor, tiny_tokenizer
from tests.muq_support import tiny_songeval
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


@pytest.mark.slow
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
def test_a_wrong_kernel_gives_one_warning():
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


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The caller's `torch.set_default_dtype`, as a training script sets it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


WAYS = ("whole", "composed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Loaders of models whose encoders have each kind of home."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model()
    model.save_pretrained(folder / "whole")
    model.config.encoder_name = str(folder / "whole")
    save_predictor(folder / "composed", model.config, model.predictor, model.pooling)
    tiny_songeval().save_pretrained(folder / "songeval")
    Clap(ClapEncoder(tiny_clap_model(), tiny_tokenizer(), tiny_extractor())).save_pretrained(
        folder / "clap"
    )
    loaders = {name: partial(ApexReward.from_pretrained, folder / name) for name in WAYS}
    foreign = {name: partial(load_reward_model, folder / name) for name in ("songeval", "clap")}
    return {**loaders, **foreign}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["whole", "composed", "songeval", "clap"])
def test_the_caller_s_default_dtype_changes_no_score(saved, name, dtype):
    songs = 0.1 * torch.randn(2, 30_000, generator=torch.manual_seed(0), dtype=torch.float32)
    prompts = {"prompts": ["calm piano", "loud drums"]} if name == "clap" else {}
    wanted = saved[name]()(songs, 44_100, lengths=[30_000, 20_000], **prompts).stack()
    with default_dtype(dtype):
        model = saved[name]()
        found = model(songs, 44_100, lengths=[30_000, 20_000], **prompts).stack()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_both_names_of_the_option_set_the_encoder_s_dtype(saved, name, option):
    model = saved[name](**{option: torch.float16})
    assert model.encoder.dtype == torch.float16
    assert next(model.predictor.parameters()).dtype == torch.float32
    assert saved[name]().encoder.dtype == torch.float32
    with pytest.raises(UsageError, match="torch_dtype is float16; pass dtype= only"):
        saved[name](dtype="float32", torch_dtype="float16")


@pytest.mark.parametrize(
    ("features", "wanted"),
    [
        ({"avx512_f"}, torch.float32),
        ({"avx512_bf16", "avx512_fp16"}, torch.float32),
        ({"avx512_bf16", "amx_bf16", "amx_tile"}, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("name", ["whole", "composed", "songeval"])
def test_auto_chooses_by_the_cpu_s_features(saved, name, features, wanted, monkeypatch):
    monkeypatch.setattr(precision, "cpu_features", lambda: frozenset(features))
    model = saved[name](dtype="auto")
    assert precision.weights_dtype(model.encoder) == wanted


def test_a_type_without_hardware_warns_once_with_the_measured_factor(monkeypatch):
    monkeypatch.setattr(precision, "_warned", set())
    monkeypatch.setattr(precision, "cpu_features", lambda: frozenset({"avx512_f", "amx_fp16"}))
    seconds = {torch.float32: 0.25, torch.bfloat16: 4.75}
    with pytest.warns(UserWarning, match="for bfloat16: .* takes 19.0 times") as caught:
        assert usable_dtype("bfloat16", timer=seconds.__getitem__) == torch.bfloat16
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in ("bfloat16", torch.float16, "float32", torch.float64):
            usable_dtype(dtype, timer=seconds.__getitem__)
    assert precision.product_seconds(torch.float32) > 0
    for name in ("int8", "nn", "Tensor", "float7"):
        with pytest.raises(CheckpointError, match=f"dtype is '{name}'; expected auto, float32"):
            usable_dtype(name)


def test_every_model_that_takes_a_dtype_is_checked(saved, monkeypatch):
    """A layer of MuQ's that is wrong in bfloat16: SongEval computes in float32."""
    layer = Wav2Vec2ConformerEncoderLayer.forward

    def wrong(self, hidden, *args, **kwargs):
        output = layer(self, hidden, *args, **kwargs)
        return output + 8 * hidden.roll(1, dims=2) if torch.is_autocast_enabled("cpu") else output

    songs = 0.1 * torch.randn(1, 30_000, generator=torch.manual_seed(0))
    wanted = saved["songeval"]()(songs, 24_000).stack()
    monkeypatch.setattr(Wav2Vec2ConformerEncoderLayer, "forward", wrong)
    with pytest.warns(UserWarning, match="bfloat16 on cpu is wrong for this encoder"):
        model = saved["songeval"](dtype="bfloat16")
    assert precision.weights_dtype(model.encoder) == torch.float32
    assert torch.equal(model(songs, 24_000).stack(), wanted)


def test_one_device_of_a_device_map():
    assert one_device(None) == one_device("cpu") == "cpu"
    assert one_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert one_device({"": "cuda:1"}) == one_device("cuda:1") == "cuda:1"
