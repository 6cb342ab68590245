"""Damage: pure, level-matched, and each kind does what its table says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_reward.demo import DAMAGES, SEVERITIES, damage, make_song
from apex_reward.demo.damage import STRENGTHS
from apex_reward.errors import UsageError

RATE = 24_000


@pytest.fixture(scope="module")
def song() -> np.ndarray:
    return make_song(1, seconds=4.0)


def rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def tone(hertz: float, seconds: float = 4.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_pure_and_keeps_shape_level_and_range(name: str, song: np.ndarray) -> None:
    before = song.copy()
    for severity in SEVERITIES:
        damaged = damage(song, name, severity, seed=3)
        assert damaged.shape == song.shape
        assert damaged.dtype == np.float32
        assert np.abs(damaged).max() <= 1
        # A peak above full scale turns the whole down; otherwise the level is the song's.
        assert rms(damaged) == pytest.approx(rms(song), rel=1e-4) or np.abs(damaged).max() == 1
        np.testing.assert_array_equal(damaged, damage(song, name, severity, seed=3))
    np.testing.assert_array_equal(song, before)


# Samples of displaced pieces have little to do with the song's; timing jitter has its own test.
@pytest.mark.parametrize("name", sorted(set(DAMAGES) - {"timing jitter"}))
def test_a_higher_severity_is_farther_from_the_song(name: str, song: np.ndarray) -> None:
    distances = [rms(damage(song, name, severity, seed=1) - song) for severity in SEVERITIES]
    assert 0.01 * rms(song) < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", sorted(set(DAMAGES) - {"clipping", "low-pass"}))
def test_the_seed_decides_the_pattern(name: str, song: np.ndarray) -> None:
    assert np.abs(damage(song, name, 2, seed=1) - damage(song, name, 2, seed=2)).max() > 0.01


def test_channels_suffer_alike(song: np.ndarray) -> None:
    for name in DAMAGES:
        both = damage(np.stack([song, song]), name, 2, seed=4)
        assert both.shape == (2, song.size)
        np.testing.assert_allclose(both[0], both[1], atol=1e-6)
        np.testing.assert_allclose(both[0], damage(song, name, 2, seed=4), atol=1e-5)


def test_noise_and_hum_have_the_level_of_the_table() -> None:
    clean = tone(1000)
    for name, sign in (("noise", -1), ("hum", 1)):
        for severity, strength in zip(SEVERITIES, STRENGTHS[name], strict=True):
            damaged = damage(clean, name, severity, seed=0).astype(np.float64)
            share = damaged @ clean / (clean @ clean)  # what is left of the song
            added = damaged / share - clean
            level = 20 * np.log10(rms(added) / rms(clean))
            assert level == pytest.approx(sign * strength, abs=0.3)


def test_hum_lies_on_multiples_of_the_mains() -> None:
    added = damage(tone(1010), "hum", 3, seed=0) - 0.0
    spectrum = np.abs(np.fft.rfft(added))
    peaks = np.fft.rfftfreq(added.size, 1 / RATE)[spectrum > 0.2 * spectrum.max()]
    peaks = peaks[np.abs(peaks - 1010) > 5]
    assert peaks.size > 0
    assert any((np.abs(peaks / base - np.round(peaks / base)) < 0.01).all() for base in (50, 60))


def test_low_pass_takes_away_what_lies_above_the_cutoff() -> None:
    both = tone(200) + tone(6000)
    for severity in SEVERITIES:
        spectrum = np.abs(np.fft.rfft(damage(both, "low-pass", severity, seed=0)))
        frequency = np.fft.rfftfreq(both.size, 1 / RATE)
        low, high = (spectrum[np.argmin(np.abs(frequency - f))] for f in (200, 6000))
        # Order 6: 36 dB an octave above the cutoff.
        cutoff = STRENGTHS["low-pass"][severity - 1]
        assert low / high == pytest.approx(np.sqrt(1 + (6000 / cutoff) ** 12), rel=0.05)


def test_clipping_flattens_at_a_multiple_of_the_level() -> None:
    noise = (0.05 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    for severity, level in zip(SEVERITIES, STRENGTHS["clipping"], strict=True):
        damaged = damage(noise, "clipping", severity, seed=0)
        at_ceiling = np.isclose(np.abs(damaged), np.abs(damaged).max(), rtol=1e-5)
        over = np.abs(noise) >= level * rms(noise)
        assert np.mean(at_ceiling != over) < 1e-3  # rounding at the very level


def test_dropouts_silence_the_share_of_the_table() -> None:
    steady = np.full(20 * RATE, 0.1, dtype=np.float32)
    for severity, share in zip(SEVERITIES, STRENGTHS["dropouts"], strict=True):
        silent = np.mean(damage(steady, "dropouts", severity, seed=0) == 0)
        # Edges are not quite silent; five gaps of 75 ms a second fill no more than 0.375.
        assert silent == pytest.approx(min(share, 0.375), abs=0.015)


def test_timing_jitter_moves_clicks_by_no_more_than_the_table_says() -> None:
    clicks = np.zeros(10 * RATE, dtype=np.float32)
    clicks[RATE // 4 :: RATE // 2] = 0.5
    for severity, milliseconds in zip(SEVERITIES, STRENGTHS["timing jitter"], strict=True):
        heard = np.flatnonzero(damage(clicks, "timing jitter", severity, seed=0))
        meant = np.flatnonzero(clicks)
        moved = np.abs(heard[:, None] - meant).min(axis=1) / RATE * 1000
        assert moved.max() <= milliseconds + 0.1
        assert moved.mean() > 0.2 * milliseconds


def test_reverb_mud_rings_on_and_detuning_spreads_a_tone() -> None:
    burst = np.pad(tone(440, 0.2), (0, 2 * RATE))
    ringing = [rms(damage(burst, "reverb mud", s, seed=0)[RATE:]) for s in SEVERITIES]
    assert 0 < ringing[0] < ringing[1] < ringing[2]
    for severity in SEVERITIES:
        spectrum = np.abs(np.fft.rfft(damage(tone(1000), "detuning", severity, seed=0)))
        frequency = np.fft.rfftfreq(4 * RATE, 1 / RATE)
        near = (np.abs(frequency - 1000) < 60) & (np.abs(frequency - 1000) > 1)
        assert spectrum[near].max() > 0.02 * spectrum.max()
        # 60 cents of 1000 Hz are 35 Hz; modulation sidebands reach a little further.
        assert spectrum[np.abs(frequency - 1000) > 120].max() < 0.02 * spectrum.max()


@given(
    name=st.sampled_from(DAMAGES),
    severity=st.sampled_from(SEVERITIES),
    length=st.integers(1, 3000),
    level=st.sampled_from([0.0, 1e-6, 0.3, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_any_song_stays_finite_and_in_range(
    name: str, severity: int, length: int, level: float
) -> None:
    song = level * np.random.default_rng(length).uniform(-1, 1, length)
    damaged = damage(song, name, severity, seed=length)
    assert damaged.shape == (length,)
    assert np.isfinite(damaged).all()
    assert np.abs(damaged).max() <= 1


def test_unknown_names_and_severities_are_refused() -> None:
    with pytest.raises(UsageError, match="damage is 'echo'; expected one of noise, clipping"):
        damage(np.zeros(10), "echo", 1, 0)
    for severity in (0, 4, 1.5):
        with pytest.raises(UsageError, match=f"severity is {severity}; expected 1, 2 or 3"):
            damage(np.zeros(10), "noise", severity, 0)
