"""Blocks, second passes, arrays, bytes, digests, interrupts and bounded memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from apex_reward.audio import save_wav
from apex_reward.audio.blocks import BLOCK_SECONDS as SECONDS
from apex_reward.audio.blocks import NEXT_SECONDS as NEXT
from apex_reward.audio.decoding import (
    DecodedSong,
    DecodeSettings,
    decode_song,
    decode_songs,
    song_of,
    song_of_bytes,
    sound_facts,
)
from apex_reward.errors import AudioError, UsageError
from tests.audio.long_files import encoded, song

RATE = 8_000
SETTINGS = DecodeSettings(segment_seconds=1.0, model_rate=8_000, digest=True)


def long_song(path: Path, seconds: float = SECONDS + NEXT + 10, seed: int = 0) -> np.ndarray:
    """A WAV of slow noise; its samples (T,)."""
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    samples = samples.astype(np.float32)
    save_wav(path, samples, RATE)
    return samples


def heard(item: DecodedSong) -> list[np.ndarray]:
    return list(item.blocks())


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_long_songs_come_in_blocks_among_short_ones(tmp_path: Path, workers: int) -> None:
    seconds = [1, SECONDS + NEXT + 10, SECONDS, SECONDS + 1 / RATE, SECONDS + NEXT, 3]
    paths = [str(tmp_path / f"{n}.wav") for n in range(6)]
    whole = [
        long_song(Path(path), length, n)
        for n, (path, length) in enumerate(zip(paths, seconds, strict=True))
    ]
    counts = []
    for samples, item in zip(whole, decode_songs(paths, SETTINGS, workers), strict=True):
        blocks = heard(item)
        counts.append(len(blocks))
        np.testing.assert_array_equal(np.concatenate(blocks), samples)
        np.testing.assert_array_equal(np.concatenate(heard(item)), samples)  # decoded again
        assert (item.facts.samples, item.facts.channels) == (samples.size, 1)
        assert item.facts.flags == []
        item.close()
    assert counts == [1, 3, 1, 2, 2, 1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_songs_left_open_do_not_hold_up_the_others(tmp_path: Path, workers: int) -> None:
    paths = [str(tmp_path / f"{n}.wav") for n in range(5)]
    whole = [long_song(Path(path), SECONDS + 1, n) for n, path in enumerate(paths)]
    for samples, item in zip(whole, list(decode_songs(paths, SETTINGS, workers)), strict=True):
        np.testing.assert_array_equal(np.concatenate(heard(item)), samples)


def test_facts_are_known_at_the_end_and_a_closed_song_can_be_heard_anew(tmp_path: Path) -> None:
    samples = long_song(tmp_path / "a.wav")
    item = decode_song(str(tmp_path / "a.wav"), SETTINGS)
    blocks = item.blocks()
    np.testing.assert_array_equal(next(blocks), samples[: round(SECONDS * RATE)])
    with pytest.raises(UsageError, match="once its blocks are read"):
        _ = item.facts
    item.close()
    assert [len(block) / RATE for block in heard(item)] == [SECONDS, NEXT, 10]


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_far_in_is_the_songs_failure_when_it_is_reached(
    tmp_path: Path, workers: int
) -> None:
    samples = long_song(tmp_path / "a.wav")
    samples[round((SECONDS + 20) * RATE)] = np.nan
    save_wav(tmp_path / "a.wav", samples, RATE)
    (item,) = decode_songs([str(tmp_path / "a.wav")], SETTINGS, workers)
    blocks = item.blocks()
    assert item.error is None
    assert len(next(blocks)) == SECONDS * RATE
    with pytest.raises(AudioError, match=r"NaN or infinite samples, the first at 320\.000 s"):
        next(blocks)


def test_arrays_go_through_the_checks_of_files() -> None:
    tone = np.stack([np.sin(np.arange(16_000) / 9), np.cos(np.arange(16_000) / 9)]) / 2
    item = song_of(tone, 16_000, "a", SETTINGS)
    np.testing.assert_array_equal(heard(item)[0], tone.astype(np.float32).mean(axis=0))
    facts = item.facts
    assert (item.path, facts.samples, facts.sample_rate, facts.channels) == ("a", 16_000, 16_000, 2)
    assert song_of(tone[0], 16_000).error is None
    assert song_of(np.zeros(0, np.float32), 16_000).error == "holds no audio samples"
    broken = tone[0].copy()
    broken[8_000] = np.inf
    assert song_of(broken, 16_000).error == "holds NaN or infinite samples, the first at 0.500 s"
    assert "divide integer samples" in str(song_of(tone * 20_000, 16_000).error)


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros((96_000, 2), np.float32), 48_000, r"read as \(C, T\).*did you pass \(T, C\)"),
        (np.zeros((2, 0), np.float32), 48_000, r"read as \(C, T\) with 2 channels of 0 samples"),
        (np.zeros(10, np.int16), 48_000, "samples are int16; expected floats"),
        (np.zeros((1, 2, 3), np.float32), 48_000, r"expected \(T,\) or \(C, T\)"),
        (np.zeros(10, np.float32), 0, "sample_rate is 0"),
    ],
)
def test_arrays_in_another_layout_are_refused(samples: np.ndarray, rate: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        song_of(samples, rate)


def test_bytes_are_heard_as_their_file(tmp_path: Path) -> None:
    for name in ("OGG", "FLAC", "MP3", "WAV"):
        data = encoded(song(2), name)
        (tmp_path / "song").write_bytes(data)
        item = song_of_bytes(data, "upload", SETTINGS)
        np.testing.assert_array_equal(
            heard(item)[0], heard(decode_song(str(tmp_path / "song"), SETTINGS))[0]
        )
        assert item.facts == decode_song(str(tmp_path / "song"), SETTINGS).facts
    assert song_of_bytes(b"", "upload").error == "is empty (0 bytes)"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_sound_has_one_digest_in_any_lossless_file(tmp_path: Path, workers: int) -> None:
    # As integers: libsndfile rounds floats differently for each format.
    samples = np.round(song(3) * 32_767).astype(np.int16)
    for name in ("a.wav", "a.flac", "a.aiff"):
        soundfile.write(tmp_path / name, samples, 44_100, "PCM_16")
    other = samples.copy()
    other[100, 1] += 1  # in the second channel only
    soundfile.write(tmp_path / "b.wav", other, 44_100, "PCM_16")
    soundfile.write(tmp_path / "rate.wav", samples, 48_000, "PCM_16")
    soundfile.write(tmp_path / "mono.wav", samples[:, 0], 44_100, "PCM_16")
    (tmp_path / "bad.wav").write_text("no song")
    names = ["a.wav", "a.flac", "a.aiff", "b.wav", "rate.wav", "mono.wav", "bad.wav"]
    sounds = list(sound_facts([str(tmp_path / name) for name in names], workers))
    assert [Path(sound.path).name for sound in sounds] == names
    assert "not audio" in str(sounds[-1].error)
    facts = [sound.facts for sound in sounds[:-1] if sound.facts]
    digests = [fact.digest for fact in facts]
    assert len(digests[0]) == 32
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 4
    assert [fact.duration for fact in facts] == [3.0] * 4 + [132_300 / 48_000, 3.0]


INTERRUPTED = """
import sys
from apex_reward.audio.decoding import DecodeSettings, decode_song
from apex_reward.audio import load_audio
print("ready", flush=True)
try:
    if sys.argv[2] == "load":
        while True:
            load_audio(sys.argv[1])
    while True:
        song = decode_song(sys.argv[1], DecodeSettings(30.0, 24_000))
        assert song.error is None, song.error
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("how", ["load", "decode"])
@pytest.mark.parametrize("ending", ["flac", "mp3", "joined"])
def test_an_interrupt_in_the_middle_of_a_decode_interrupts(
    tmp_path: Path, how: str, ending: str
) -> None:
    path = tmp_path / f"long.{ending}"
    data = encoded(song(20), "MP3" if ending == "joined" else ending.upper())
    path.write_bytes(data * (3 if ending == "joined" else 1))
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.25)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "interrupted\n"
        assert process.returncode == 0
    finally:
        process.kill()


PEAK = """
import resource, sys
from apex_reward.audio.decoding import DecodeSettings, decode_song
song = decode_song(sys.argv[1], DecodeSettings(30.0, 24_000))
samples = sum(len(block) for block in song.blocks())
print(samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_three_hours_are_decoded_in_the_memory_of_five_minutes(tmp_path: Path) -> None:
    rate, peaks = 8_000, []
    tone = np.repeat(np.sin(np.arange(rate * 60) / 40).astype(np.float32)[:, None], 2, axis=1) / 2
    tone[:, 1] *= 0.5
    for minutes in (5, 180):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", rate, 2, format="FLAC") as file:
            for _ in range(minutes):
                file.write(tone)
        out = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)], capture_output=True, check=True, text=True
        )
        samples, peak = map(int, out.stdout.split())
        assert samples == minutes * 60 * rate
        peaks.append(peak)
    # KiB: a second block beside the first one (300 s x 8 kHz x 4 bytes), and no more.
    assert peaks[1] - peaks[0] < 2.5 * SECONDS * rate * 4 / 1024


def test_a_pointer_of_git_lfs_says_what_to_run(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    (tmp_path / "a.wav").write_bytes(pointer)
    assert decode_song(str(tmp_path / "a.wav"), SETTINGS).error == (
        "is a Git LFS pointer, not the audio itself; run `git lfs pull`"
    )
