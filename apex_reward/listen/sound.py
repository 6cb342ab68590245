"""Two songs as WAV files of equal loudness, so that the louder one is not preferred for it."""

from __future__ import annotations

import io
import math
from pathlib import Path

import soundfile
import torch

from apex_reward.audio.load import load_audio
from apex_reward.audio.loudness import integrated_loudness

LISTENING_LUFS = -18.0  # leaves most music room for its peaks


def equally_loud(a: Path, b: Path) -> tuple[tuple[bytes, bytes], tuple[float, float]]:
    """16-bit WAV bytes and seconds of two songs at -18 LUFS, both lower where one would clip."""
    songs = [load_audio(a), load_audio(b)]
    stereo = [torch.from_numpy(song.samples[:2]) for song in songs]
    rates = [song.sample_rate for song in songs]
    gains = []
    for samples, rate in zip(stereo, rates, strict=True):
        loudness = float(integrated_loudness(samples.unsqueeze(0), rate))
        gains.append(10 ** ((LISTENING_LUFS - loudness) / 20) if math.isfinite(loudness) else 1.0)
    peak = max(g * float(s.abs().max()) for g, s in zip(gains, stereo, strict=True))
    common = min(1.0, 0.999 / peak) if peak else 1.0
    wavs = []
    for samples, rate, gain in zip(stereo, rates, gains, strict=True):
        file = io.BytesIO()
        soundfile.write(file, (samples * gain * common).numpy().T, rate, "PCM_16", format="WAV")
        wavs.append(file.getvalue())
    lengths = [s.shape[1] / rate for s, rate in zip(stereo, rates, strict=True)]
    return (wavs[0], wavs[1]), (lengths[0], lengths[1])
