"""Sounds that are no music: the same from the same seed, in range, each of its kind."""

from __future__ import annotations

import numpy as np
import pytest

from apex_reward.demo import make_song
from apex_reward.errors import UsageError
from toys.junk import JUNK, make_junk, make_texture


def test_a_seed_gives_one_texture_of_the_asked_length() -> None:
    texture = make_texture(3, seconds=2.5)
    assert (texture.shape, texture.dtype) == ((60_000,), np.float32)
    assert 0 < np.abs(texture).max() <= 1
    np.testing.assert_array_equal(texture, make_texture(3, seconds=2.5))
    assert np.abs(texture - make_texture(4, seconds=2.5)).max() > 0.01
    assert make_texture(3, seconds=0.5, sample_rate=8000).shape == (4000,)


@pytest.mark.parametrize("kind", JUNK)
def test_junk_repeats_itself_and_stays_in_range(kind: str) -> None:
    wave = make_junk(kind, 3, seconds=1.5, sample_rate=16_000)
    assert (wave.shape, wave.dtype) == ((24_000,), np.float32)
    np.testing.assert_array_equal(wave, make_junk(kind, 3, seconds=1.5, sample_rate=16_000))
    assert np.abs(wave).max() <= 1
    assert (np.abs(wave).max() == 0) == (kind == "silence")
    if kind not in ("silence", "constant"):
        assert np.ptp(wave - make_junk(kind, 4, seconds=1.5, sample_rate=16_000)) > 0


def test_a_clipped_song_is_cut_at_a_small_part_of_its_peak() -> None:
    song, wave = make_song(5, 4.0), make_junk("clipped song", 5, 4.0)
    flat = np.abs(wave) > 0.999 * np.abs(wave).max()
    ceiling = np.abs(song[flat]).min() / np.abs(song).max()
    assert 0.049 < ceiling < 0.131
    np.testing.assert_array_equal(flat, np.abs(song) >= np.abs(song[flat]).min())


def test_unknown_junk_is_refused() -> None:
    with pytest.raises(UsageError, match="junk is 'music'; expected one of white noise, "):
        make_junk("music", 0)
