"""Loudness against two other implementations, the Recommendation's own figures, and gradcheck."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import torch
import torchaudio
from scipy.signal import lfilter
from torch._subclasses.fake_tensor import FakeTensorMode

from apex_reward.audio import load_audio
from apex_reward.audio.loudness import (
    integrated_loudness,
    k_weighted,
    k_weighting,
    loudness_of_blocks,
)
from apex_reward.errors import UsageError
from apex_reward.model.inputs import at_loudness
from tests.support import golden_song


def test_coefficients_at_48_khz_are_those_of_the_recommendation() -> None:
    shelf, high_pass = k_weighting(48_000)
    assert shelf[0] == pytest.approx((1.53512485958697, -2.69169618940638, 1.19839281085285))
    assert shelf[1] == pytest.approx((1.0, -1.69065929318241, 0.73248077421585))
    assert high_pass[0] == pytest.approx((1.0, -2.0, 1.0))
    assert high_pass[1] == pytest.approx((1.0, -1.99004745483398, 0.99007225036621))


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_filtering_by_fft_is_the_recursive_filter(rate: int) -> None:
    song = golden_song(1, rate, 1, 0.3)[0].astype(np.float64)
    expected = song
    for numerator, denominator in k_weighting(rate):
        expected = lfilter(numerator, denominator, expected)
    np.testing.assert_allclose(k_weighted(torch.tensor(song), rate), expected, atol=1e-10)


@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_agrees_with_torchaudio_and_pyloudnorm(rate: int, channels: int) -> None:
    song = golden_song(2, rate, channels, 4.0) * 0.3
    song[:, : rate * 2] *= 0.02  # below the relative gate
    ours = integrated_loudness(torch.tensor(song)[None], rate).item()
    assert ours == pytest.approx(
        torchaudio.functional.loudness(torch.tensor(song), rate).item(), abs=0.1
    )
    assert ours == pytest.approx(
        pyloudnorm.Meter(rate).integrated_loudness(song.T.astype(np.float64)), abs=0.1
    )


def test_agrees_closely_with_the_same_coefficients() -> None:
    song = golden_song(3, 48_000, 2, 3.0)
    meter = pyloudnorm.Meter(48_000, filter_class="DeMan")
    ours = integrated_loudness(torch.tensor(song)[None], 48_000).item()
    assert ours == pytest.approx(meter.integrated_loudness(song.T), abs=2e-3)


def test_a_full_scale_sine_of_997_hz_reads_minus_3_01() -> None:
    # BS.1770-4, annex 1: one front channel, 0 dB FS, 1 kHz (997 Hz).
    time = torch.arange(48_000 * 2, dtype=torch.float64) / 48_000
    sine = torch.sin(2 * math.pi * 997 * time)
    assert integrated_loudness(sine[None], 48_000).item() == pytest.approx(-3.01, abs=0.01)
    surround = torch.zeros(1, 5, len(sine), dtype=torch.float64)
    surround[0, 4] = sine
    assert integrated_loudness(surround, 48_000).item() == pytest.approx(
        -3.01 + 10 * math.log10(1.41), abs=0.01
    )
    effects = torch.zeros(1, 6, len(sine), dtype=torch.float64)
    effects[0, 3] = sine
    assert integrated_loudness(effects, 48_000).item() == -math.inf


def test_a_batch_gives_what_its_songs_give_alone() -> None:
    songs = [torch.tensor(golden_song(i, 24_000, 1, s)[0]) for i, s in enumerate((2.5, 0.2, 1.13))]
    batch = torch.nn.utils.rnn.pad_sequence(songs, batch_first=True)
    batch[1, len(songs[1]) :] = 0.5  # whatever lies beyond a song's end is not heard
    lengths = torch.tensor([len(song) for song in songs])
    alone = torch.cat([integrated_loudness(song[None], 24_000) for song in songs])
    torch.testing.assert_close(
        integrated_loudness(batch, 24_000, lengths), alone, atol=1e-3, rtol=0
    )


def test_real_song(shared_folder: Path) -> None:
    song = load_audio(shared_folder / "audio" / "songeval_example.mp3")
    samples = song.samples[:, : song.sample_rate * 30]
    expected = pyloudnorm.Meter(song.sample_rate).integrated_loudness(samples.T)
    measured = integrated_loudness(torch.tensor(samples)[None], song.sample_rate).item()
    assert measured == pytest.approx(expected, abs=0.1)


def test_normalizing_reaches_the_target_and_leaves_silence() -> None:
    songs = torch.tensor(golden_song(4, 24_000, 1, 1.0)).repeat(3, 1)
    songs[1] *= 0.01
    songs[2] = 0
    scaled = at_loudness(songs, 24_000, -18.0)
    assert integrated_loudness(scaled, 24_000)[:2].tolist() == pytest.approx([-18, -18], abs=1e-3)
    torch.testing.assert_close(scaled[0], scaled[1], rtol=1e-3, atol=1e-5)
    assert scaled[2].abs().sum() == 0


def test_the_gradient_has_no_part_along_the_waveform() -> None:
    song = torch.tensor(golden_song(5, 24_000, 1, 1.0), dtype=torch.float64).requires_grad_()
    weights = torch.randn(song.shape, generator=torch.Generator().manual_seed(0)).double()
    (at_loudness(song, 24_000, -14.0) * weights).sum().backward()
    assert song.grad is not None
    along = (song.grad * song).sum() / (song.grad.norm() * song.norm())
    assert song.grad.norm() > 1
    assert abs(along.item()) < 1e-9


def test_silence_has_zero_gradient() -> None:
    silence = torch.zeros(1, 24_000, requires_grad=True)
    measured = integrated_loudness(silence, 24_000)
    at_loudness(silence, 24_000, -14.0).sum().backward()
    assert measured.item() == -math.inf
    assert silence.grad is not None
    assert torch.isfinite(silence.grad).all()


@pytest.mark.parametrize("shape", [(2, 4_000), (1, 2, 4_000)])
def test_gradcheck(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    songs = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    songs[..., :1_000] *= 0.01
    songs.requires_grad_()
    lengths = torch.tensor([4_000, 2_500][: shape[0]])
    for function in (
        lambda x: integrated_loudness(x, 8_000, lengths),
        lambda x: at_loudness(x, 8_000, -14.0, lengths),
    ):
        assert torch.autograd.gradcheck(function, songs, fast_mode=True)


def test_under_autocast_it_is_the_same() -> None:
    song = torch.tensor(golden_song(6, 24_000, 1, 1.0))
    expected = integrated_loudness(song, 24_000)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(integrated_loudness(song, 24_000), expected)


def test_a_rate_without_loudness_is_named() -> None:
    with pytest.raises(UsageError, match="at least 4000 Hz"):
        integrated_loudness(torch.zeros(1, 24_000), 24)


def test_a_song_in_blocks_has_the_loudness_of_the_whole() -> None:
    song = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 100 * 8_000)).float()
    song[: 40 * 8_000] *= 0.05
    whole = integrated_loudness(song[None], 8_000)[0]
    for size in (1_000, 77_777, len(song)):
        torch.testing.assert_close(
            loudness_of_blocks(song.split(size), 8_000), whole, atol=1e-4, rtol=0
        )
    short = song[-1_000:]
    torch.testing.assert_close(
        loudness_of_blocks([short], 8_000), integrated_loudness(short[None], 8_000)[0]
    )


def test_loudness_stays_on_the_songs_device() -> None:
    # Fake tensors refuse to mix devices, and need no GPU.
    with FakeTensorMode():
        songs = torch.zeros(2, 24_000, device="cuda")
        measured = integrated_loudness(songs, 24_000, [24_000, 1_000])
        scaled = at_loudness(songs, 24_000, -18.0, [24_000, 1_000])
        blocks = loudness_of_blocks([songs[0], songs[1], songs[0, :7]], 24_000)
        short = loudness_of_blocks([songs[0, :7]], 24_000)
    for result in (measured, scaled, blocks, short):
        assert result.device.type == "cuda"
    assert torch.isneginf(integrated_loudness(torch.zeros(1, 24_000), 24_000))


def test_what_inference_mode_leaves_behind_has_gradients() -> None:
    with torch.inference_mode():
        integrated_loudness(torch.ones(1, 5_003, dtype=torch.float64), 5_003)
    song = torch.randn(1, 5_003, dtype=torch.float64, requires_grad=True)
    integrated_loudness(song, 5_003).sum().backward()
    assert song.grad is not None
    assert song.grad.abs().sum() > 0
