"""Formats that FFmpeg decodes: every sample of a whole decode, no flag, and what damage does."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from apex_reward.audio import ffmpeg, load_audio, save_wav, stream
from apex_reward.audio.decoding import PLAIN, decode_song, decode_songs, song_of_bytes
from apex_reward.errors import AudioError
from tests.audio.ffmpeg_files import KINDS, encoded, whole_decode
from tests.audio.long_files import encoded as by_libsndfile
from tests.audio.long_files import song

SECONDS = 25
# Samples behind the source's that a format adds at the end, and by how many samples it is late, as
# docs/guides/formats.md has it.
TABLE = {
    "adts.aac": (1372, 1024),
    "a.m4a": (348, 0),
    "alac.m4a": (0, 0),
    "a.wma": (-676, -2048),
    "opus.caf": (960, 312),
    "opus.webm": (0, 0),
    "opus.opus": (0, 0),
    "pcm.mka": (0, 0),
    "aac.mka": (348, 0),
    "flac.mka": (0, 0),
    "vorbis.mkv": (0, 0),
    "a.ts": (1372, 1024),
    "ac3.mka": (92, 0),
}


@lru_cache
def file_of(name: str) -> bytes:
    return encoded(song(SECONDS, KINDS[name].rate), KINDS[name])


def written(folder: Path, name: str, data: bytes | None = None) -> str:
    path = folder / name
    path.write_bytes(file_of(name) if data is None else data)
    return str(path)


@pytest.mark.parametrize("name", KINDS)
def test_every_sample_of_a_whole_decode_and_no_flag(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rate = written(tmp_path, name), KINDS[name].rate
    extra, late = TABLE[name]
    whole = whole_decode(file_of(name))
    if name == "opus.opus":  # libsndfile reads it
        whole = soundfile.read(path, dtype="float32")[0].T
    for size in (stream.CHUNK, 1000):
        for module in (stream, ffmpeg):
            monkeypatch.setattr(module, "CHUNK", size)
        waveform = load_audio(path)
        np.testing.assert_array_equal(waveform.samples, whole)
    decoded = decode_song(path, PLAIN)
    assert (decoded.error, decoded.facts.flags, decoded.sample_rate) == (None, [], rate)
    np.testing.assert_array_equal(decoded.mono, waveform.samples.mean(axis=0))
    assert decoded.facts.samples == SECONDS * rate + extra
    assert decoded.facts == song_of_bytes(file_of(name), "upload").facts
    second = slice(10 * rate, 11 * rate)
    source = song(SECONDS, rate).mean(axis=1)[second]
    there = decoded.mono[second.start + late : second.stop + late]
    assert np.corrcoef(source, there)[0, 1] > 0.95


@pytest.mark.parametrize("name", KINDS)
def test_a_worker_gives_the_same_song(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    (here,), (there,) = (list(decode_songs([path], PLAIN, n)) for n in (0, 1))
    np.testing.assert_array_equal(here.mono, there.mono)
    assert here.facts == there.facts


def test_a_duration_guessed_from_the_bit_rate_is_only_a_hint(tmp_path: Path) -> None:
    quiet, loud = song(35, seed=1), song(35, seed=2)
    for name, samples in {
        "half silent.aac": np.concatenate([loud, 0 * quiet]),
        "soft, then loud.aac": np.concatenate([0.01 * quiet, loud]),
    }.items():
        path = written(tmp_path, name, encoded(samples, KINDS["adts.aac"]))
        decoded = decode_song(path, PLAIN)
        assert (decoded.error, decoded.facts.flags) == (None, [])
        assert decoded.facts.duration == pytest.approx(70.0, abs=0.04)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith("m4a")])
def test_a_file_that_was_cut_is_decoded_as_far_as_it_goes_and_flagged(
    name: str, tmp_path: Path
) -> None:
    whole = file_of(name)
    decoded = decode_song(written(tmp_path, name, whole[: len(whole) // 2]), PLAIN)
    assert decoded.error is None
    assert decoded.facts.duration == pytest.approx(12.4, abs=0.5)
    assert "truncated" in decoded.facts.flags


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"opus.opus", "opus.caf", "a.ts"}))
def test_a_hole_in_the_middle_is_flagged(name: str, tmp_path: Path) -> None:
    whole = bytearray(file_of(name))
    middle = slice(len(whole) // 2, len(whole) * 6 // 10)
    whole[middle] = bytes(middle.stop - middle.start)
    decoded = decode_song(written(tmp_path, name, bytes(whole)), PLAIN)
    assert decoded.error is None
    assert "incomplete" in decoded.facts.flags


@pytest.mark.parametrize("ending", ["", "and a tag"])
def test_a_tag_behind_the_sound_is_no_damage(ending: str, tmp_path: Path) -> None:
    data = file_of("adts.aac") + (b"TAG" + bytes(125) if ending else b"")
    assert decode_song(written(tmp_path, "adts.aac", data), PLAIN).facts.flags == []


def failing_reads(monkeypatch: pytest.MonkeyPatch, after: int, ends: bool = False) -> None:
    """libsndfile as it is with some valid Opus files: it fails, or ends, after so many reads."""
    real, reads = stream.Reader.read, []

    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        reads.append(self)
        if len(reads) > after:
            if ends:
                return kwargs["out"][:0]
            raise soundfile.LibsndfileError(29)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(stream.Reader, "read", read)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "WAV"])
@pytest.mark.parametrize("after", [0, 1, 10])
def test_ffmpeg_goes_on_where_libsndfile_fails(
    kind: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "a", by_libsndfile(song(SECONDS), kind))
    whole = load_audio(path).samples
    failing_reads(monkeypatch, after)
    decoded = load_audio(path)
    np.testing.assert_allclose(decoded.samples, whole, rtol=0, atol=1e-5)


def test_opus_that_libsndfile_ends_early_is_decoded_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "opus.opus")
    failing_reads(monkeypatch, 20, ends=True)
    decoded = decode_song(path, PLAIN)
    assert (decoded.facts.samples, decoded.facts.flags) == (SECONDS * 48_000, [])


def test_a_file_is_damaged_only_if_both_decoders_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "a.wav", by_libsndfile(song(2), "WAV"))
    failing_reads(monkeypatch, 1)
    monkeypatch.setattr(ffmpeg, "av", None)
    with pytest.raises(AudioError) as error:
        load_audio(path)
    assert str(error.value) == (
        "is damaged at 0.7 s (libsndfile: Format not recognised; "
        "FFmpeg: not installed; run `pip install av`)"
    ).replace("Format not recognised", soundfile.LibsndfileError(29).error_string.rstrip("."))


def test_without_ffmpeg_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ffmpeg, "av", None)
    assert decode_song(written(tmp_path, "a.m4a"), PLAIN).error == (
        "is not audio that can be decoded (libsndfile: Format not recognised; "
        "FFmpeg: not installed; run `pip install av`)"
    )


def test_a_file_that_neither_reads_has_both_reasons(tmp_path: Path) -> None:
    data = b"\0\0\0\x20ftypM4A " + bytes(99)
    assert decode_song(written(tmp_path, "head.m4a", data), PLAIN).error == (
        "is not audio that can be decoded (libsndfile: Format not recognised; "
        "FFmpeg: Invalid data found when processing input)"
    )


def test_a_name_is_never_an_address_and_a_list_opens_no_other_file(tmp_path: Path) -> None:
    name = "concat:a.m4a"
    assert decode_song(written(tmp_path, name, file_of("a.m4a")), PLAIN).error is None
    save_wav(tmp_path / "song.wav", np.zeros(100, np.float32), 8_000)
    for name, text in {
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsong.wav\n#EXT-X-ENDLIST\n",
        "list.ffconcat": "ffconcat version 1.0\nfile song.wav\n",
    }.items():
        decoded = decode_song(written(tmp_path, name, text.encode()), PLAIN)
        assert "is not audio that can be decoded" in str(decoded.error)


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("7.1", 8)])
@pytest.mark.parametrize("name", ["flac.mka", "pcm.mka", "a.wav"])
def test_surround_is_the_mean_of_its_channels_the_lfe_among_them(
    name: str, layout: str, channels: int, tmp_path: Path
) -> None:
    samples = song(3, channels=channels)
    if name == "a.wav":
        data = by_libsndfile(samples, "WAV", "FLOAT")
    else:
        data = encoded(samples, KINDS[name], layout)
    decoded = decode_song(written(tmp_path, name, data), PLAIN)
    assert decoded.facts.channels == channels
    np.testing.assert_allclose(decoded.mono, samples.mean(axis=1), rtol=0, atol=4e-5)


def test_surround_of_planar_samples_keeps_every_channel(tmp_path: Path) -> None:
    """AAC decodes to one plane per channel. A tone of its own in each shows a lost one."""
    t = np.arange(44_100, dtype=np.float32) / 44_100
    tones = [0.1 * np.sin(2 * np.pi * 40 * (number + 1) * t) for number in range(6)]
    data = encoded(np.stack(tones, axis=1).astype(np.float32), KINDS["aac.mka"], "5.1")
    decoded = decode_song(written(tmp_path, "aac.mka", data), PLAIN)
    assert decoded.error is None
    assert decoded.facts.channels == 6
    spectrum = np.abs(np.fft.rfft(decoded.mono[8_820:35_280] * np.hanning(26_460)))
    levels = [spectrum[round(40 * (number + 1) * 0.6)] for number in range(6)]
    assert min(levels) > 0.5 * max(levels)
