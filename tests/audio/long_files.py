"""Files whose headers lie about their length, built from what libsndfile writes."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

RATE = 44_100


def song(seconds: float, rate: int = RATE, channels: int = 2, seed: int = 0) -> np.ndarray:
    """(T, C) float32: a swelling tone with noise in every other second, so that VBR varies."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(t.size) * (np.sin(np.pi * t) > 0)
    swell = 0.2 * (1 + np.sin(2 * np.pi * 0.3 * t))
    tones = [swell * np.sin(2 * np.pi * 220 * (c + 1) * t) + 0.05 * noise for c in range(channels)]
    return np.stack(tones, axis=1).astype(np.float32)


def encoded(samples: np.ndarray, kind: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def mp3(samples: np.ndarray, mode: str = "VARIABLE", rate: int = RATE) -> bytes:
    """An MP3 as LAME writes it, its first frame a Xing frame (`Info` at a constant rate)."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer,
        "w",
        rate,
        samples.shape[1],
        format="MP3",
        bitrate_mode=mode,
        compression_level=0.5,
    ) as file:
        file.write(samples)
    return buffer.getvalue()


def without_xing(data: bytes) -> bytes:
    """An MP3 of MPEG 1 layer 3 at 44.1 kHz without its first frame."""
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[data[2] >> 4]
    assert data[36:40] in (b"Xing", b"Info")
    return data[144 * kbits * 1000 // RATE + (data[2] >> 1 & 1) :]


def flac_of_unknown_length(data: bytes) -> bytes:
    """STREAMINFO's 36 bits of total samples set to 0, as a streaming encoder leaves them."""
    changed = bytearray(data)
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed)


def wav_claiming(data: bytes, size: int) -> bytes:
    """A WAV whose data chunk claims `size` bytes."""
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]
