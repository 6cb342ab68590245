"""Sounds that are no music, for the recipes that teach apex-tiny: textures, noise and tones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apex_reward.demo import make_song
from apex_reward.demo.instruments import Array, Rng, shape
from apex_reward.errors import UsageError

JUNK = (
    "white noise", "uniform noise", "pink noise", "coloured noise", "band noise", "sine", "square",
    "saw", "hum", "tones", "clicks", "constant", "silence", "clipped song",
)  # fmt: skip


def make_texture(
    seed: int, seconds: float = 20.0, sample_rate: int = 24_000
) -> NDArray[np.float32]:
    """A recording without music: steady or surging noise of some colour (rain, wind, static).

    Training material only, so that noise is known both as a disturbance and as the thing recorded.
    Returns (T,) float32 samples in [-1, 1].
    """
    rng = np.random.default_rng([seed, 8])
    length = round(seconds * sample_rate)
    slope = float(rng.choice([0.0, rng.uniform(-0.1, 0.5)]))
    wave = rng.standard_normal(length)
    if rng.random() < 0.3:  # drops and crackle beside the steady part
        wave += rng.uniform(1, 12) * wave * (rng.random(length) < 0.002)
    wave = shape(wave, sample_rate, lambda f: np.maximum(f, 30.0) ** -slope)
    surge = np.sin(2 * np.pi * rng.uniform(0.05, 0.5) * np.arange(length) / sample_rate)
    wave = wave * (1 + float(rng.choice([0.0, rng.uniform(0, 0.5)])) * surge)
    return _levelled(wave, rng.uniform(-45, -15))


def make_junk(
    kind: str, seed: int, seconds: float = 20.0, sample_rate: int = 24_000
) -> NDArray[np.float32]:
    """A sound that no listener takes for music, at a random level; peak at most 1.

    Args:
        kind: one of `JUNK`. A clipped song is `make_song(seed)` cut at 5 to 13% of its peak.
        seed: decides pitch, colour, rhythm and level; noise of equal seeds is equal.
        seconds: length of the result.
        sample_rate: in Hz.

    Returns:
        (T,) float32 samples in [-1, 1].

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in JUNK:
        raise UsageError(f"junk is {kind!r}; expected one of {', '.join(JUNK)}")
    rng = np.random.default_rng([seed, 9, JUNK.index(kind)])
    length = round(seconds * sample_rate)
    if kind == "clipped song":
        song = make_song(seed, seconds, sample_rate)
        ceiling = float(np.abs(song).max()) * rng.uniform(0.05, 0.13)
        wave = np.clip(song, -ceiling, ceiling).astype(np.float64)
    elif "noise" in kind:
        wave = _noise(kind, rng, length, sample_rate)
    else:
        wave = _tone(kind, rng, length, sample_rate)
    return _levelled(wave, rng.uniform(-40, -6))


def _noise(kind: str, rng: Rng, length: int, rate: int) -> Array:
    """Steady noise; of some colour, or of a band of one to five octaves."""
    if kind == "uniform noise":
        return rng.uniform(-1, 1, length)
    slope = {"pink noise": 0.5, "coloured noise": rng.uniform(-0.5, 1.2)}.get(kind, 0.0)
    wave = shape(rng.standard_normal(length), rate, lambda f: np.maximum(f, 20.0) ** -slope)
    if kind != "band noise":
        return wave
    low = 40 * 2 ** rng.uniform(0, 6.5)
    high = low * 2 ** rng.uniform(1, 5)
    return shape(wave, rate, lambda f: 1 / np.sqrt(1 + (low / (f + 1)) ** 12 + (f / high) ** 12))


def _tone(kind: str, rng: Rng, length: int, rate: int) -> Array:
    """A steady tone of some waveform, mains hum, several tones, clicks, a constant, or zeros."""
    time = np.arange(length) / rate
    pitch = 40 * 2 ** rng.uniform(0, 7)
    turns = pitch * time + rng.uniform()
    if kind == "sine":
        return np.sin(2 * np.pi * turns)
    if kind == "square":
        return np.sign(np.sin(2 * np.pi * turns))
    if kind == "saw":
        return 2 * (turns % 1) - 1
    if kind == "hum":
        base, falling = rng.choice([50.0, 60.0]), rng.uniform(0.6, 3.0)
        waves = [np.sin(2 * np.pi * base * k * time) / k**falling for k in range(1, 15)]
        return np.sum(waves[: int(rng.choice([1, 4, 14]))], axis=0)
    if kind == "tones":
        pitches = 60 * 2 ** rng.uniform(0, 6, int(rng.integers(2, 6)))
        return np.sum([np.sin(2 * np.pi * p * time + p) for p in pitches], axis=0)
    if kind == "clicks":
        period = max(2, int(rate / rng.uniform(1, 40)))
        return np.asarray(np.arange(length) % period == period // 2, dtype=np.float64)
    return np.full(length, 1.0 if kind == "constant" else 0.0)


def _levelled(wave: Array, decibels: float) -> NDArray[np.float32]:
    """At this RMS level; turned down to a peak of 1 where the level would pass it."""
    wave = wave / max(float(np.sqrt(np.mean(wave**2))), 1e-9) * 10 ** (decibels / 20)
    return np.asarray(wave / max(float(np.abs(wave).max()), 1.0), dtype=np.float32)
