"""Two songs as WAV files of equal loudness, so that the louder one is not preferred for it."""

from __future__ import annotations

import math
import tempfile
import threading
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import IO

import soundfile
import torch

from apex_reward.audio.load import load_audio
from apex_reward.audio.loudness import integrated_loudness

Wav = IO[bytes]

LISTENING_LUFS = -18.0  # leaves most music room for its peaks
KEPT = 64


class Sounds:
    """The WAV files of the latest `KEPT` pairs of songs, by ticket. Older files are deleted."""

    def __init__(self) -> None:
        self._pairs: OrderedDict[str, tuple[Wav, Wav]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, a: Path, b: Path) -> tuple[str, tuple[float, float]]:
        """The ticket of two songs, and their lengths in seconds; raises AudioError."""
        wavs, seconds = equally_loud(a, b)
        ticket = uuid.uuid4().hex
        with self._lock:
            self._pairs[ticket] = wavs
            while len(self._pairs) > KEPT:
                self._pairs.popitem(last=False)
        return ticket, seconds

    def wav(self, ticket: str, side: int) -> Wav:
        """The song of side 0 or 1; KeyError where the ticket is not kept."""
        with self._lock:
            return dict(enumerate(self._pairs[ticket]))[side]


def equally_loud(a: Path, b: Path) -> tuple[tuple[Wav, Wav], tuple[float, float]]:
    """16-bit WAV files and seconds of two songs at -18 LUFS, both lower where one would clip.

    The files' names are random. A file is deleted when its object is.
    """
    songs = [load_audio(a), load_audio(b)]
    stereo = [torch.from_numpy(song.samples[:2]) for song in songs]
    rates = [song.sample_rate for song in songs]
    gains = []
    for samples, rate in zip(stereo, rates, strict=True):
        loudness = float(integrated_loudness(samples.unsqueeze(0), rate))
        gains.append(10 ** ((LISTENING_LUFS - loudness) / 20) if math.isfinite(loudness) else 1.0)
    peak = max(g * float(s.abs().max()) for g, s in zip(gains, stereo, strict=True))
    common = min(1.0, 0.999 / peak) if peak else 1.0
    wavs: list[Wav] = []
    for samples, rate, gain in zip(stereo, rates, gains, strict=True):
        wavs.append(tempfile.NamedTemporaryFile(suffix=".wav"))  # noqa: SIM115
        soundfile.write(wavs[-1].name, (samples * gain * common).numpy().T, rate, "PCM_16")
    lengths = [s.shape[1] / rate for s, rate in zip(stereo, rates, strict=True)]
    return (wavs[0], wavs[1]), (lengths[0], lengths[1])
