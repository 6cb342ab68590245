"""Each flag on either side of its threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_reward.audio.flags import DecodeSettings, FlagMeter

RATE = 24_000


def flags_of(
    samples: np.ndarray, rate: int = RATE, missing: int = 0, segment: float = 1.0, chunk: int = 0
) -> list[str]:
    song = np.ascontiguousarray(np.atleast_2d(samples).T.astype(np.float32))
    meter = FlagMeter(song.shape[1], rate)
    for start in range(0, len(song), chunk or len(song)):
        part = song[start : start + (chunk or len(song))]
        meter.add(part, np.empty(len(part), np.float32))
    return meter.flags(DecodeSettings(segment, RATE), missing)


def sine(level: float, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)


def test_an_ordinary_song_has_none() -> None:
    assert flags_of(np.stack([sine(0.3), sine(0.3, frequency=660)])) == []


# The RMS of a sine is its level / sqrt(2): -60 dBFS is a level of 0.001414.
@pytest.mark.parametrize(("level", "silent"), [(0.0, True), (0.00140, True), (0.00143, False)])
def test_silent_is_below_minus_60_dbfs_rms(level: float, silent: bool) -> None:
    assert ("silent" in flags_of(sine(level))) == silent


def test_clipped_is_a_thousandth_of_one_channel() -> None:
    clean = sine(0.5)
    for bad, expected in ((23, False), (24, True)):  # of 24,000
        other = clean.copy()
        other[:bad] = 1.5
        assert ("clipped" in flags_of(np.stack([clean, other]))) == expected


def test_flat_tops_at_full_scale_are_clipped_and_a_full_scale_sine_is_not() -> None:
    assert flags_of(sine(1.0)) == []
    assert flags_of(np.clip(sine(1.2), -1, 1)) == ["clipped"]
    # 16-bit full scale is 32767 / 32768.
    assert flags_of(np.clip(sine(1.2), -1, 1) * 32767 / 32768) == ["clipped"]
    # A square wave well below full scale is a timbre.
    assert flags_of(np.sign(sine(1.0)) * 0.5) == []


def test_short_is_under_half_a_segment() -> None:
    assert flags_of(sine(0.3, seconds=14.99), segment=30.0) == ["short"]
    assert flags_of(sine(0.3, seconds=15.0), segment=30.0) == []


def test_mono_duplicate_within_minus_80_dbfs() -> None:
    first = sine(0.3)
    assert flags_of(np.stack([first, first])) == ["mono-duplicate"]
    assert flags_of(np.stack([first, first + 0.9e-4])) == ["mono-duplicate"]
    assert flags_of(np.stack([first, first + 1.2e-4])) == []
    assert flags_of(np.stack([first, first, sine(0.3, frequency=660)])) == []
    assert flags_of(first) == []


def test_phase_cancelled_is_20_db_lost_in_the_mix() -> None:
    first = sine(0.3)
    assert flags_of(np.stack([first, -0.9 * first])) == ["phase-cancelled"]  # 5% left of 95%
    assert flags_of(np.stack([first, -0.75 * first])) == []  # 12.5% left of 88%


def test_phase_cancelled_in_a_tenth_of_the_seconds_with_sound() -> None:
    first = sine(0.3, seconds=20)
    for reversed_seconds, expected in (
        (1, []),
        (2, ["phase-cancelled"]),
        (10, ["phase-cancelled"]),
    ):
        other = first.copy()
        other[: reversed_seconds * RATE] *= -0.99
        assert flags_of(np.stack([first, 0.9 * other])) == expected
        for chunk in (1000, 24_000, 77_777):
            assert flags_of(np.stack([first, 0.9 * other]), chunk=chunk) == expected
    # Seconds of silence do not count.
    silence = np.zeros((2, 60 * RATE))
    song = np.concatenate([np.stack([first, 0.9 * other])[:, 8 * RATE : 18 * RATE], silence], 1)
    assert flags_of(song) == ["phase-cancelled"]


def test_upsampled_is_below_the_encoders_rate() -> None:
    assert flags_of(sine(0.3, seconds=2.0), rate=23_999) == ["upsampled"]
    assert flags_of(sine(0.3, seconds=2.0), rate=24_000) == []


def test_truncated_is_more_than_half_a_second_missing() -> None:
    assert flags_of(sine(0.3), missing=12_001) == ["truncated"]
    assert flags_of(sine(0.3), missing=12_000) == []


def test_flags_do_not_depend_on_the_chunks() -> None:
    flat = np.zeros(24_000)
    flat[100:125] = 1.0  # 24 samples equal to the one before: a thousandth of the song
    for chunk in (0, 1, 7, 110, 1000):
        assert flags_of(flat, chunk=chunk) == ["clipped"]
    flat[124] = 0.0
    for chunk in (0, 1, 7, 110, 1000):
        assert flags_of(flat, chunk=chunk) == []


@given(st.integers(1, 3), st.integers(1, 50), st.floats(0, 2), st.integers(0, 99))
def test_any_finite_audio_has_flags_and_gain_down_never_clips(
    channels: int, length: int, level: float, seed: int
) -> None:
    samples = level * np.random.RandomState(seed).uniform(-1, 1, (channels, length))
    assert set(flags_of(samples)) <= {
        *("silent", "clipped", "short", "mono-duplicate", "phase-cancelled")
    }
    assert "clipped" not in flags_of(samples * 0.49)
