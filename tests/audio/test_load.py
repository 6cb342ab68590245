from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile

from apex_reward.audio import load_audio, save_wav
from apex_reward.audio.load import songs_by_stem
from apex_reward.errors import AudioError

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_U8", 0.02),
        ("a.wav", "DOUBLE", 1e-6),
        ("a.flac", "PCM_24", 1e-6),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_formats_decode_to_the_same_samples(tmp_path, name, subtype, tolerance):
    soundfile.write(tmp_path / name, np.stack([TONE, -0.5 * TONE], axis=1), 24_000, subtype)
    waveform = load_audio(tmp_path / name)
    assert waveform.sample_rate == 24_000
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.shape == (2, 24_000)
    middle = slice(2_000, 22_000)
    assert np.abs(waveform.samples[0] - TONE)[middle].max() < tolerance
    assert np.abs(waveform.mono - 0.25 * TONE)[middle].max() < tolerance
    assert waveform.duration == 1.0


def test_saved_floats_come_back_bit_for_bit(tmp_path):
    samples = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    save_wav(tmp_path / "x.wav", samples, 8_000)
    assert np.array_equal(load_audio(tmp_path / "x.wav").samples, samples)


def _write(path, data):
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.symlink_to(p.with_name("nowhere")), "link to nothing"),
        (lambda p: _write(p, b""), "0 bytes"),
        (lambda p: _write(p, b"these are words, no music\n" * 50), "not audio"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: soundfile.write(p, np.zeros((0, 1)), 24_000), "no audio samples"),
        (lambda p: save_wav(p, np.array([0, 0, np.nan, 0], np.float32), 4), "first at 0.500 s"),
        (lambda p: save_wav(p, np.array([np.inf, 0], np.float32), 4), "first at 0.000 s"),
    ],
)
def test_bad_files_give_their_reason(tmp_path, make, reason):
    path = tmp_path / "song.wav"
    make(path)
    with pytest.raises(AudioError, match=reason):
        load_audio(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "song.wav"
    save_wav(path, np.zeros(10, np.float32), 10)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(AudioError, match="permission denied"):
        load_audio(path)


def test_songs_are_found_by_name_whatever_stands_beside_them(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "a.mp3", "a.txt", "b.json", "deep/c.FLAC", "deep/a.wav"):
        (tmp_path / name).touch()
    assert songs_by_stem(tmp_path) == {"a": tmp_path / "a.mp3", "c": tmp_path / "deep" / "c.FLAC"}
