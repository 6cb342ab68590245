"""Synthetic songs: the same from the same seed, in range, and of many kinds."""

from __future__ import annotations

import numpy as np
import pytest

from apex_reward.demo import make_song
from apex_reward.demo.instruments import fast_length, reverb, shape


def test_a_seed_gives_one_song_of_the_asked_length() -> None:
    song = make_song(3, seconds=2.5)
    assert song.shape == (60_000,)
    assert song.dtype == np.float32
    assert 0 < np.abs(song).max() <= 1
    np.testing.assert_array_equal(song, make_song(3, seconds=2.5))
    assert np.abs(song - make_song(4, seconds=2.5)).max() > 0.01
    assert make_song(3, seconds=0.5, sample_rate=8000).shape == (4000,)


def test_songs_differ_in_brightness_and_loudness_as_records_do() -> None:
    songs = [make_song(seed, seconds=3.0) for seed in range(24)]
    levels = [20 * np.log10(np.sqrt(np.mean(song**2))) for song in songs]
    assert np.ptp(levels) > 8
    frequency = np.fft.rfftfreq(songs[0].size, 1 / 24_000)
    power = [np.abs(np.fft.rfft(song)) ** 2 for song in songs]
    bright = [10 * np.log10(p[frequency > 3000].sum() / p.sum()) for p in power]
    assert np.ptp(bright) > 15
    assert min(np.std(song) for song in songs) > 0.01


def test_no_song_has_a_constant_part() -> None:
    for seed in range(6):
        song = make_song(seed, seconds=3.0)
        assert abs(song.mean()) < 0.02 * song.std()


def test_shape_filters_and_reverb_rings() -> None:
    t = np.arange(24_000) / 24_000
    wave = np.sin(2 * np.pi * 100 * t) + np.sin(2 * np.pi * 5000 * t)
    filtered = shape(wave, 24_000, lambda f: (f < 1000).astype(float))
    np.testing.assert_allclose(
        filtered[2000:-2000], np.sin(2 * np.pi * 100 * t)[2000:-2000], atol=0.02
    )
    click = np.zeros(24_000)
    click[0] = 1.0
    rung = reverb(np.random.default_rng(0), click, 24_000, seconds=0.5, wet=0.3)
    early, late = np.abs(rung[1000:4000]).mean(), np.abs(rung[8000:11000]).mean()
    assert rung[0] == pytest.approx(1.0, abs=1e-5)
    assert early > 5 * late > 0


@pytest.mark.parametrize(("length", "expected"), [(1, 1), (7, 8), (16, 16), (17, 18), (100, 120)])
def test_fast_length(length: int, expected: int) -> None:
    assert fast_length(length) == expected
