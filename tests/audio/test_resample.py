from __future__ import annotations

import pytest
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from apex_reward.audio.resample import BlockResampler, resample, resampled_length
from apex_reward.audio.segment import cut_segments
from apex_reward.errors import AudioError, UsageError

RATES = [8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]


@pytest.mark.parametrize("rate", RATES)
def test_own_resampling_equals_torchaudio(rate):
    ours = (torch.randn(2, 3, 5_001, generator=torch.manual_seed(rate)) * 0.3).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    a = resample(ours, rate, 24_000)
    b = torchaudio.functional.resample(theirs, rate, 24_000)
    assert a.shape == b.shape == (2, 3, resampled_length(5_001, rate, 24_000))
    assert (a - b).abs().max() < 1e-5
    weight = torch.randn(a.shape, generator=torch.manual_seed(1))
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    assert theirs.grad.abs().max() > 0.01
    assert (ours.grad - theirs.grad).abs().max() < 1e-5


def test_a_sine_keeps_its_pitch_and_level():
    t = torch.arange(44_100, dtype=torch.float64) / 44_100
    out = resample(torch.sin(2 * torch.pi * 1_000 * t), 44_100, 24_000)
    wanted = torch.sin(2 * torch.pi * 1_000 * torch.arange(24_000, dtype=torch.float64) / 24_000)
    assert (out - wanted)[200:-200].abs().max() < 2e-3


@given(length=st.integers(1, 400), rate=st.sampled_from([8_000, 22_050, 44_100, 48_000]))
def test_length_is_the_exact_ceiling(length, rate):
    out = resample(torch.ones(length), rate, 24_000)
    assert out.shape == (-(-length * 24_000 // rate),)


@pytest.mark.parametrize("size", [147, 1000, 44_101])
def test_blocks_joined_are_the_whole(size):
    song = torch.randn(88_201, generator=torch.Generator().manual_seed(0))
    resampler = BlockResampler(44_100, 24_000)
    blocks = song.split(size)
    joined = torch.cat([resampler.push(b, at == len(blocks) - 1) for at, b in enumerate(blocks)])
    whole = resample(song, 44_100, 24_000)
    assert len(joined) == len(whole) == 48_001
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-6)


def test_gradient_is_exact():
    x = torch.randn(1, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: resample(y, 44_100, 24_000), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_number_type_changes_nothing(dtype):
    x = torch.randn(2, 30_001, dtype=torch.float32)
    wanted = resample(x, 44_100, 24_000)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(resample(x, 44_100, 24_000), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_equal_rates_change_nothing():
    x = torch.randn(3, 50)
    assert torch.equal(resample(x, 24_000, 24_000), x)


def test_half_precision_is_widened():
    assert resample(torch.ones(1, 100, dtype=torch.bfloat16), 48_000, 24_000).dtype == torch.float32


@pytest.mark.parametrize("rate", [0, -1, 44_100.5])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(UsageError, match="positive whole number of Hz"):
        resample(torch.ones(10), rate, 24_000)


def test_a_rate_without_common_divisor_says_what_to_do():
    with pytest.raises(AudioError, match="convert the file to a common rate"):
        resample(torch.ones(10), 44_101, 24_000)
    with pytest.raises(AudioError, match="one filter for each of 1200 output phases"):
        resample(torch.ones(10), 28_001 * 20, 24_000)  # (28,001 + 14) * 1,200 taps > 2^25


def test_blocks_and_segments_stay_on_the_songs_device() -> None:
    with FakeTensorMode():  # it refuses to mix devices, and needs no GPU
        resampler = BlockResampler(44_100, 24_000)
        song = torch.zeros(100_000, device="cuda")
        parts = [resampler.push(song[:60_000], False), resampler.push(song[60_000:], True)]
        joined = torch.cat(parts)
        segments = cut_segments(joined[None], [len(joined)], 24_000, 24_000, "mask")
        means = segments.song_means(segments.samples.mean(dim=1), 1)
    assert {part.device.type for part in [*parts, segments.samples, means]} == {"cuda"}
