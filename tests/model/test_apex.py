"""The model's promises: batches, gradients, dtypes, modes, round trips."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward import ApexConfig, ApexReward, RewardMix
from apex_reward.audio.loudness import integrated_loudness
from apex_reward.errors import AudioError, UsageError
from apex_reward.model.inputs import at_loudness
from apex_reward.scores.apex import HEADS, POPULARITY_HEADS
from tests.support import small_config, tiny_model

RATE = 24_000
LENGTHS = [60_000, 24_000, 30_001, 500]


def songs(lengths=LENGTHS, seed=0):
    generator = torch.manual_seed(seed)
    batch = torch.zeros(len(lengths), max(lengths))
    for i, n in enumerate(lengths):
        batch[i, :n] = torch.randn(n, generator=generator) * 0.1 * (i + 1)
    return batch


@pytest.mark.parametrize("tail", ["pad", "mask", "drop"])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_batch_gives_what_its_songs_give_one_by_one(tail, rate):
    model = tiny_model(segment_tail=tail)
    batch = songs().requires_grad_()
    together = model(batch, rate, lengths=LENGTHS, batch_segments=3).stack()
    (together * torch.arange(1.0, 8.0)).sum().backward()
    assert together.std(dim=0).min() > 1e-4  # else equality would say nothing
    for i, n in enumerate(LENGTHS):
        alone = batch.detach()[i : i + 1, :n].clone().requires_grad_()
        scores = model(alone, rate, batch_segments=1).stack()
        (scores * torch.arange(1.0, 8.0)).sum().backward()
        assert (scores - together[i]).abs().max() < 1e-4
        scale = alone.grad.abs().max()
        assert scale > 0
        assert (alone.grad[0] - batch.grad[i, :n]).abs().max() < 1e-4 * scale
        assert batch.grad[i, n:].abs().max() == 0 if n < batch.shape[1] else True


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), size=st.integers(1, 9), extra=st.integers(0, 30_000))
def test_order_padding_and_batch_size_do_not_matter(order, size, extra):
    model = tiny_model()
    batch = songs()
    expected = model(batch, RATE, lengths=LENGTHS).stack()[list(order)]
    padded = torch.nn.functional.pad(batch[list(order)], (0, extra))
    padded[:, LENGTHS[0] :] = 0.7  # samples beyond a song's end change nothing
    lengths = [LENGTHS[i] for i in order]
    found = model(padded, RATE, lengths=lengths, batch_segments=size).stack()
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("tail", ["pad", "mask"])
def test_bounded_gradient_equals_the_plain_one(tail):
    """The plain one: the same modules called without the packer."""
    model = tiny_model(segment_tail=tail).double()
    waveform = (torch.randn(1, 100_000, dtype=torch.float64) * 0.1).requires_grad_()
    padded = torch.nn.functional.pad(waveform, (0, 20_000)).reshape(5, 24_000)
    real = torch.tensor([24_000] * 4 + [4_000])
    weight = (
        real.double() / real.sum() if tail == "mask" else torch.full((5,), 0.2, dtype=torch.float64)
    )
    layers = model.encoder(padded, real if tail == "mask" else None)
    plain = model.predictor(model.pooling((layers * weight[:, None, None]).sum(0, keepdim=True)))
    (plain_gradient,) = torch.autograd.grad(plain.sum(), waveform)
    bounded = model(waveform, RATE, batch_segments=2).stack()
    (bounded_gradient,) = torch.autograd.grad(bounded.sum(), waveform)
    assert torch.allclose(bounded, plain, rtol=1e-10)
    difference = (bounded_gradient - plain_gradient).norm() / plain_gradient.norm()
    assert difference < 1e-5


def test_gradients_reach_encoder_weights_when_asked():
    model = tiny_model().double()
    batch = songs([40_000, 30_000]).double()
    model(batch, RATE).stack().sum().backward()
    assert all(weight.grad is None for weight in model.encoder.parameters())
    model.encoder.requires_grad_(True)
    names = [
        "encoder.layers.0.attention.q_proj.weight",
        "feature_extractor.conv_layers.0.conv.weight",
    ]
    weights = [model.encoder.get_parameter(name) for name in names]
    bounded = torch.autograd.grad(model(batch, RATE, batch_segments=1).stack().sum(), weights)
    segments = torch.cat(
        [
            torch.nn.functional.pad(s, (0, 48_000 - len(s))).reshape(2, -1)
            for s in (batch[0], batch[1])
        ]
    )
    layers = model.encoder(segments).reshape(2, 2, 4, -1).mean(1)
    plain = torch.autograd.grad(model.predictor(model.pooling(layers)).sum(), weights)
    for a, b in zip(bounded, plain, strict=True):
        assert b.abs().max() > 0
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "mix", ["aesthetics", "popularity", "overall", "musicality=1,clarity=-0.5"]
)
def test_gradcheck_of_the_reward(mix):
    model = tiny_model(segment_seconds=0.05, encoder={"conv_dim": [4] * 7}, width=16).double()
    waveform = (torch.randn(2, 2_000, dtype=torch.float64) * 0.1).requires_grad_()
    lengths = [2_000, 1_300]

    def reward(x):
        return model.reward(x, RATE, lengths=lengths, mix=mix)

    assert torch.autograd.gradcheck(reward, (waveform,), fast_mode=True, atol=1e-6)


def test_channels_are_averaged():
    model = tiny_model()
    stereo = torch.randn(2, 2, 30_000) * 0.1
    assert torch.equal(model(stereo, RATE).stack(), model(stereo.mean(dim=1), RATE).stack())


def test_out_of_memory_halves_the_batch_forward_and_backward(monkeypatch):
    model = tiny_model()
    batch = songs([24_000 * 7]).requires_grad_()
    expected = model(batch, RATE, batch_segments=1).stack()
    (expected_gradient,) = torch.autograd.grad(expected.sum(), batch)
    sizes, forward = [], type(model.encoder).forward

    def small_memory(self, segments, real=None):
        sizes.append(len(segments))
        if len(segments) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, segments, real)

    monkeypatch.setattr(type(model.encoder), "forward", small_memory)
    scores = model(batch, RATE, batch_segments=6).stack()
    (gradient,) = torch.autograd.grad(scores.sum(), batch)
    # The graph of the last six is tried and given up: they are recomputed like the first.
    halved = [6, 3, 1, 1, 1, 1, 1, 1]
    assert sizes == [1, 6, *halved, *halved, 1]
    assert torch.allclose(scores, expected, atol=1e-4)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)


def test_memory_that_does_not_suffice_for_one_segment_is_an_error(monkeypatch):
    model = tiny_model()

    def no_memory(self, segments, real=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model.encoder), "forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        model(songs(), RATE, lengths=LENGTHS)


def test_the_model_stays_in_eval_mode_inside_a_training_policy():
    policy = torch.nn.Sequential(torch.nn.Linear(1, 1), tiny_model())
    policy.train()
    model = policy[1]
    assert policy[0].training
    assert not any(module.training for module in model.modules())
    assert not any(module.training for module in model.encoder.train().modules())
    assert torch.equal(model(songs(), RATE).stack(), model(songs(), RATE).stack())


def test_round_trip_keeps_every_score_and_setting(tmp_path):
    model = tiny_model(task="popularity", shared=3, segment_tail="mask", demonstration=True)
    model.config.mix = RewardMix.parse("score_likes=2").to_dict()
    model.save_pretrained(tmp_path)
    again = ApexReward.from_pretrained(tmp_path)
    assert torch.equal(model(songs(), RATE).stack(), again(songs(), RATE).stack())
    assert again(songs(), RATE).names == POPULARITY_HEADS
    assert (again.config.segment_tail, again.config.demonstration) == ("mask", True)
    assert torch.equal(
        again.reward(songs(), RATE), again.reward(songs(), RATE, mix="score_likes=2")
    )
    assert ApexReward.from_pretrained(tmp_path, segment_tail="pad").config.segment_tail == "pad"
    assert not (tmp_path / "pytorch_model.bin").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_predictor_whole(tmp_path, dtype):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    half = ApexReward.from_pretrained(tmp_path, dtype=dtype)
    assert half.encoder.dtype == dtype
    assert half.predictor.shared[0].block[0].weight.dtype == torch.float32
    wanted, found = model(songs(), RATE).stack(), half(songs(), RATE).stack()
    assert found.dtype == torch.float32
    assert (wanted[:, :2] - found[:, :2]).abs().max() < 1.5
    assert (wanted[:, 2:] - found[:, 2:]).abs().max() < 0.06
    # A plain .to() casts the predictor too; it still computes in float32.
    cast = copy.deepcopy(model).to(dtype)(songs(), RATE).stack()
    assert cast.dtype == torch.float32


def test_autocast_changes_the_encoder_only():
    model = tiny_model()
    batch = songs().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(batch, RATE, lengths=LENGTHS).stack()
    scores.sum().backward()
    wanted = model(batch, RATE, lengths=LENGTHS).stack()
    assert scores.dtype == torch.float32
    assert 0 < (scores - wanted).abs().max() < 1.5
    assert batch.grad.abs().sum() > 0


@pytest.mark.slow
def test_compiled_model_gives_the_same_scores():
    model = tiny_model(encoder={"num_hidden_layers": 1}, layers=(0, 1))
    expected = model(songs(), RATE, lengths=LENGTHS).stack()
    compiled = torch.compile(model)
    with torch.no_grad():
        found = compiled(songs(), RATE, lengths=LENGTHS).stack()
    assert torch.allclose(found, expected, atol=1e-4)


def test_empty_batch_and_single_sample():
    model = tiny_model()
    with pytest.raises(UsageError, match="holds no songs"):
        model(torch.zeros(0, 100), RATE)
    assert model(torch.zeros(1, 1), RATE).stack().isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"waveforms": torch.ones(2, 10, dtype=torch.int16)}, UsageError, "divide integer samples"),
        ({"waveforms": torch.ones(10)}, UsageError, r"waveform\[None\]"),
        ({"waveforms": torch.ones(2, 10_000, 2)}, UsageError, r"did you pass \(B, T, C\)"),
        ({"lengths": [5]}, UsageError, "1 lengths were given for 2 songs"),
        ({"lengths": [30, 31]}, UsageError, "did you pass seconds"),
        ({"lengths": [0, 5]}, UsageError, "song 0: 0"),
        ({"lengths": torch.tensor([1.0, 2.0])}, UsageError, "whole numbers of samples"),
        ({"sample_rate": 44.1}, UsageError, "whole number of Hz"),
        ({"waveforms": torch.full((2, 10), 20_000.0)}, AudioError, "32768"),
        ({"waveforms": torch.tensor([[0.0, 1.0], [0.0, torch.nan]])}, AudioError, "songs 1 of"),
        ({"waveforms": torch.tensor([[0.0, torch.inf], [0.0, 1.0]])}, AudioError, "songs 0 of"),
        ({"waveforms": torch.zeros(2, 0)}, UsageError, "between 1 and T = 0"),
        ({"batch_segments": -1}, UsageError, "batch_segments is -1"),
    ],
)
def test_wrong_input_says_what_was_expected(arguments, error, message):
    values = {"waveforms": torch.zeros(2, 30), "sample_rate": RATE, **arguments}
    with pytest.raises(error, match=message):
        tiny_model()(**values)


def test_preference_mix_needs_a_calibrated_head():
    with pytest.raises(UsageError, match="arena calibrate"):
        tiny_model().reward(songs(), RATE, mix="preference")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_tail": "cut"}, "segment_tail is 'cut'"),
        ({"layers": (2, 5, 8, 13)}, "indices from 0 to"),
        ({"layers": (3, 2)}, "rising"),
        ({"layers": ()}, r"layers are \[\]; expected indices from 0 to 12"),
        ({"layers": (2, 2)}, "rising, each once"),
        ({"batch_segments": 0}, "batch_segments is 0"),
        ({"segment_seconds": 0.4 / 24_000}, "segment_seconds is .*; expected more than 0"),
        ({"members": 0}, "members is 0; expected 1 or more"),
        ({"task": "popularity", "spread_scale": (1.0,)}, "has 1 values; .* one for each of 2"),
        ({"task": "all"}, "expected one of popularity, full"),
        ({"shared": 4}, "2 or 3 layers"),
    ],
)
def test_wrong_configuration_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        ApexConfig(**changes)


def test_the_least_that_is_a_configuration():
    config = ApexConfig(
        layers=(0, 12), batch_segments=1, members=1, segment_seconds=0.6 / 24_000,
        task="popularity", spread_scale=(1.0, 2.0),
    )  # fmt: skip
    assert (config.segment_samples, config.spread_scale) == (1, [1.0, 2.0])


def test_equal_encoders_have_equal_fingerprints():
    first, same = (tiny_model().encoders[0].fingerprint() for _ in range(2))
    others = [
        tiny_model(seed=1), tiny_model(segment_tail="mask"), tiny_model(layers=(1, 2, 3)),
        tiny_model(segment_seconds=0.5),
    ]  # fmt: skip
    assert first == same
    assert len({first, *(other.encoders[0].fingerprint() for other in others)}) == 5


def test_songs_at_one_loudness_are_mono_and_scaled():
    """The mean of a channel and silence is 6.02 dB down; silence stays what it is."""
    wave = songs()[:1]
    stereo = torch.stack([wave, torch.zeros_like(wave)], dim=1)
    measured = integrated_loudness(wave / 2, RATE).item()
    found = at_loudness(stereo, RATE, measured + 20)
    torch.testing.assert_close(found, wave * 5, rtol=1e-4, atol=1e-5)
    assert torch.equal(at_loudness(torch.zeros(1, RATE), RATE, -14.0), torch.zeros(1, RATE))


def test_reward_equals_the_mix_of_the_scores():
    model = tiny_model()
    scores = model(songs(), RATE)
    expected = torch.stack([(scores[h] - 1) / 4 for h in HEADS[2:]]).mean(0)
    assert torch.allclose(model.reward(songs(), RATE), expected, atol=1e-6)


def test_small_config_is_what_the_tests_think():
    assert small_config().segment_samples == RATE


def test_the_graph_holds_the_waveform_and_nothing_of_the_encoder():
    """Bytes kept for the backward pass grow by what the longer waveform itself takes."""
    model = tiny_model()

    def kept(seconds):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        waveform = (torch.randn(1, seconds * RATE) * 0.1).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.reward(waveform, RATE, batch_segments=1)
        return total

    short, long = kept(2), kept(40)
    waveform_bytes = 38 * RATE * 4
    assert 0 < long - short < 1.1 * waveform_bytes
