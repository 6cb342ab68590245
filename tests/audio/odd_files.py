"""Files that a folder of songs may hold besides songs: broken, misnamed and unusual ones."""

from __future__ import annotations

import io
import os
import socket
import struct
import wave
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

RATE = 24_000


def tone(seconds: float = 0.5, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """(T, C) float32, a different pitch in every channel."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack(
        [0.4 * np.sin(2 * np.pi * 220 * (c + 1) * t) for c in range(channels)], axis=1
    ).astype(np.float32)


def encoded(kind: str, samples: np.ndarray, rate: int = RATE, subtype: str | None = None) -> bytes:
    """A whole audio file in memory."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def wav_claiming(data_bytes: int) -> bytes:
    """A 16-bit WAV with one second of audio whose header claims another length."""
    whole = encoded("WAV", tone(1.0), subtype="PCM_16")
    at = whole.index(b"data") + 4
    return whole[:at] + struct.pack("<I", data_bytes) + whole[at + 4 :]


def empty_wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("song.wav", b"RIFF")
    return buffer.getvalue()


def flac_header() -> bytes:
    """Magic and STREAMINFO of a FLAC that claims hours of audio, with nothing behind."""
    whole = bytearray(encoded("FLAC", tone()))
    whole[21] |= 0x0F  # the upper bits of the count of samples
    whole[22:26] = b"\xff\xff\xff\xff"
    return bytes(whole[:42])


def float_wav(value: float, whole: bool = False) -> bytes:
    """A float WAV with `value` at one sample, or everywhere."""
    samples = tone()
    samples[slice(None) if whole else 100] = value
    return encoded("WAV", samples, subtype="FLOAT")


def noise(count: int) -> bytes:
    return np.random.RandomState(0).bytes(count)


# Content that cannot be scored, with a part of the reason that the row must give.
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.wav": (lambda: b"", "is empty"),
    "text.mp3": (lambda: b"These are the lyrics.\n" * 9, "not audio"),
    "page.mp3": (lambda: b"<!doctype html><title>404</title>" * 99, "not audio"),
    "answer.ogg": (lambda: b'{"error": "not found"}', "not audio"),
    "utf16.m4a": (lambda: "Liedtext".encode("utf-16"), "not audio"),
    "picture.flac": (lambda: b"\x89PNG\r\n\x1a\n" + noise(500), "not audio"),
    "archive.wav": (zipped, "not audio"),
    "noise.wav": (lambda: noise(5000), "not audio"),
    "zeros.mp3": (lambda: bytes(20_000), "not audio"),
    "one byte.wav": (lambda: b"R", "not audio"),
    "half header.wav": (lambda: encoded("WAV", tone())[:20], "not audio"),
    "no samples.wav": (empty_wav, "no audio samples"),
    "header.flac": (flac_header, ""),
    "header.mp3": (lambda: b"ID3\x04\x00\x00\x00\x00\x00\x00", "not audio"),
    "header.ogg": (lambda: encoded("OGG", tone())[:58], "not audio"),
    "nan.wav": (lambda: float_wav(np.nan), "NaN or infinite samples, the first at 0.004 s"),
    "inf.wav": (lambda: float_wav(np.inf), "NaN or infinite samples"),
    "all nan.wav": (lambda: float_wav(np.nan, whole=True), "the first at 0.000 s"),
    "integers.wav": (lambda: float_wav(20_000.0), "divide integer samples"),
    "huge.wav": (lambda: float_wav(1e38, whole=True), "should lie in [-1, 1]"),
    "one hertz.wav": (lambda: encoded("WAV", tone(), rate=1), "sample rate of 1 Hz"),
    "odd rate.wav": (lambda: encoded("WAV", tone(), rate=191_999), "sample rate of 191999 Hz"),
    "line\nbreak.wav": (lambda: b"no song", "not audio"),
    os.fsdecode(b"latin-\xe9.wav"): (lambda: b"no song", "not audio"),
}

# Unusual content that is audio all the same, with the flags its row must carry.
UNUSUAL: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "one sample.wav": (lambda: encoded("WAV", tone()[100:101]), {"short"}),
    "short.wav": (lambda: encoded("WAV", tone(0.1)), {"short"}),
    "8 bits.wav": (lambda: encoded("WAV", tone(), subtype="PCM_U8"), set()),
    "24 bits.wav": (lambda: encoded("WAV", tone(), subtype="PCM_24"), set()),
    "doubles.wav": (lambda: encoded("WAV", tone(), subtype="DOUBLE"), set()),
    "a-law.wav": (lambda: encoded("WAV", tone(), subtype="ALAW"), set()),
    "8 kHz.wav": (lambda: encoded("WAV", tone(rate=8_000), rate=8_000), {"upsampled"}),
    "96 kHz.flac": (lambda: encoded("FLAC", tone(rate=96_000), rate=96_000), set()),
    "6 channels.wav": (lambda: encoded("WAV", tone(channels=6)), set()),
    "silence.wav": (lambda: encoded("WAV", 0 * tone()), {"silent"}),
    "clipped.wav": (lambda: encoded("WAV", np.clip(5 * tone(), -1, 1)), {"clipped"}),
    "twice mono.wav": (lambda: encoded("WAV", tone().repeat(2, axis=1)), {"mono-duplicate"}),
    "opposed.wav": (
        lambda: encoded("WAV", tone() * [[1, -1]], subtype="FLOAT"),
        {"silent", "phase-cancelled"},
    ),
    "truncated.mp3": (
        lambda: (whole := encoded("MP3", tone(4.0)))[: len(whole) // 2],
        {"truncated"},
    ),
    "claims more.wav": (lambda: wav_claiming(10**9), {"truncated"}),
    "claims 0.wav": (lambda: wav_claiming(0), set()),
    "claims 4 GB.wav": (lambda: wav_claiming(0xFFFFFFFF), set()),
    "garbage behind.wav": (lambda: encoded("WAV", tone()) + noise(999), set()),
    "wav inside.mp3": (lambda: encoded("WAV", tone()), set()),
    "LOUD.WAV": (lambda: encoded("WAV", tone()), set()),
    "song.ogg": (lambda: encoded("OGG", tone()), set()),
    "song.aiff": (lambda: encoded("AIFF", tone()), set()),
    "song.au": (lambda: encoded("AU", tone()), set()),
}


def write_odd_files(folder: Path) -> None:
    """All of `BROKEN` and `UNUSUAL`, a folder named like a song, and what is no regular file."""
    for files in (BROKEN, UNUSUAL):
        for name, (content, _) in files.items():
            (folder / name).write_bytes(content())
    (folder / "folder.wav").mkdir()
    (folder / "broken link.wav").symlink_to(folder / "gone.wav")
    (folder / "link to itself.wav").symlink_to(folder / "link to itself.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as unix, _inside(folder):
        unix.bind("socket.wav")


# What is no regular file, with a part of the reason.
SPECIAL = {
    "folder.wav": "is a folder",
    "broken link.wav": "link to nothing",
    "link to itself.wav": "cannot be opened",
    "device.wav": "not a regular file",
    "pipe.wav": "not a regular file",
    "socket.wav": "not a regular file",
}


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The working directory for a while: a socket's path must be short."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
