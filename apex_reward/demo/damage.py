"""Known damage: eight ways to make a song worse, and how they change a model's scores.

Shape key: T = samples; leading dimensions are channels. N = songs, D = damages, V = versions of a
song (clean, severity 1, 2, 3).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from apex_reward.demo.instruments import fast_length
from apex_reward.errors import UsageError
from apex_reward.model import ApexReward

Wave = NDArray[np.float32]
Rng = np.random.Generator
Damage = Callable[[Wave, float, Rng, int], Wave]

SAMPLE_RATE = 24_000
SEVERITIES = (1, 2, 3)


def damage(
    waveform: NDArray[np.floating], name: str, severity: int, seed: int, sample_rate: int = 24_000
) -> Wave:
    """A worse version of a song, of the same length and RMS level.

    The same arguments give the same samples. Severities of one seed share their random pattern
    (the same noise, louder), so that a series differs in strength alone. Where the matched level
    would pass full scale, the result is turned down to a peak of 1.

    Args:
        waveform: (T,) or (C, T) samples in [-1, 1].
        name: one of `DAMAGES`.
        severity: 1 (plainly audible), 2 or 3 (severe); the strengths are in `STRENGTHS`.
        seed: decides the random pattern.
        sample_rate: in Hz.

    Returns:
        float32 samples shaped like `waveform`, in [-1, 1].

    Raises:
        UsageError: an unknown damage or severity.
    """
    if name not in _DAMAGES:
        raise UsageError(f"damage is {name!r}; expected one of {', '.join(DAMAGES)}")
    if severity not in SEVERITIES:
        raise UsageError(f"severity is {severity!r}; expected 1, 2 or 3")
    song = np.asarray(waveform, dtype=np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    change, strengths = _DAMAGES[name]
    damaged = change(song, strengths[severity - 1], rng, sample_rate)
    damaged = damaged * (rms(song) / max(rms(damaged), 1e-9))
    peak = float(np.abs(damaged).max(initial=0.0))
    return np.asarray(damaged / max(peak, 1.0), dtype=np.float32)


def _noise(song: Wave, decibels: float, rng: Rng, rate: int) -> Wave:
    """Steady pink noise: the same power in every octave from 20 Hz up."""
    length = song.shape[-1]
    spectrum = np.fft.rfft(rng.standard_normal(length, dtype=np.float32))
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / rate), 20.0)
    return _add(song, np.fft.irfft(spectrum / np.sqrt(frequency), length), -decibels)


def _clipping(song: Wave, level: float, rng: Rng, rate: int) -> Wave:
    """Hard clipping of the whole mix."""
    ceiling = level * rms(song)
    return np.clip(song, -ceiling, ceiling)


def _low_pass(song: Wave, cutoff: float, rng: Rng, rate: int) -> Wave:
    """Butterworth magnitude of order 6, without phase shift."""
    frequency = np.fft.rfftfreq(song.shape[-1], 1 / rate)
    spectrum = np.fft.rfft(song) * (1 / np.sqrt(1 + (frequency / cutoff) ** 12))
    return np.asarray(np.fft.irfft(spectrum, song.shape[-1]), dtype=np.float32)


def _dropouts(song: Wave, share: float, rng: Rng, rate: int) -> Wave:
    """Silent gaps of 30 to 120 ms with 1 ms edges."""
    length = song.shape[-1]
    slots = max(1, round(length / rate * 5))
    starts = (np.arange(slots) + rng.uniform(0, 0.4, slots)) * (rate / 5)
    order = rng.permutation(slots)
    sizes = rng.uniform(0.03, 0.12, slots)
    open_gap = np.zeros(slots, dtype=bool)
    # Gaps open in a fixed random order until their sum reaches the share, so series are nested.
    open_gap[order] = np.cumsum(sizes[order]) - sizes[order] < share * length / rate
    edges = np.zeros(length + 1)
    begin = np.minimum(starts[open_gap].astype(int), length)
    end = np.minimum((starts[open_gap] + sizes[open_gap] * rate).astype(int), length)
    np.add.at(edges, begin, 1)
    np.add.at(edges, end, -1)
    gain = 1.0 - (np.cumsum(edges[:-1]) > 0)
    window = np.ones(min(max(1, rate // 1000), length))
    return song * np.convolve(gain, window / window.size, mode="same")


def _hum(song: Wave, decibels: float, rng: Rng, rate: int) -> Wave:
    """Mains hum at 50 or 60 Hz with fourteen falling harmonics."""
    seconds = np.arange(song.shape[-1]) / rate
    base = rng.choice([50.0, 60.0])
    hum = np.zeros(song.shape[-1])
    for harmonic in range(1, 15):
        phase = rng.uniform(0, 2 * np.pi)
        hum += np.sin(2 * np.pi * base * harmonic * seconds + phase) / harmonic**0.8
    return _add(song, hum, decibels)


def _detuning(song: Wave, decibels: float, rng: Rng, rate: int) -> Wave:
    """A double of the song whose pitch wavers by up to 60 cents is played along with it."""
    deviation = 2 ** (60 / 1200) - 1
    seconds = np.arange(song.shape[-1]) / rate
    position = np.arange(song.shape[-1], dtype=np.float64)
    for low, high in ((0.6, 1.6), (3.0, 6.0)):
        speed, phase = 2 * np.pi * rng.uniform(low, high), rng.uniform(0, 2 * np.pi)
        position += rate * 0.5 * deviation / speed * np.sin(speed * seconds + phase)
    return _add(song, _read(song, position), decibels)


def _timing_jitter(song: Wave, milliseconds: float, rng: Rng, rate: int) -> Wave:
    """Pieces of 70 to 200 ms, each moved in time: gaps stay silent, overlaps sound twice."""
    length = song.shape[-1]
    count = int(length / rate / 0.07) + 2
    bounds = np.cumsum(rng.uniform(0.07, 0.2, count) * rate).astype(int)
    shifts = np.round(rng.uniform(-1, 1, count + 1) * milliseconds * rate / 1000).astype(int)
    sample = np.arange(length)
    piece = np.searchsorted(bounds, sample, side="right")
    start = np.concatenate([[0], bounds])
    to_edge = np.minimum(sample - start[piece], bounds[piece] - 1 - sample)
    faded = song * np.clip((to_edge + 1) / (0.001 * rate), 0.0, 1.0)
    target = sample + shifts[piece]
    inside = (target >= 0) & (target < length)
    rows = np.reshape(faded, (-1, length))
    moved = [np.bincount(target[inside], row[inside], minlength=length) for row in rows]
    return np.asarray(moved, dtype=np.float32).reshape(song.shape)


def _reverb_mud(song: Wave, decibels: float, rng: Rng, rate: int) -> Wave:
    """A long, dull reverberation: noise that decays by 60 dB in 1.5 to 3 s, darkened."""
    decay = rng.uniform(1.5, 3.0)
    seconds = np.arange(int(decay * rate)) / rate
    tail = rng.standard_normal(seconds.size) * 10 ** (-3 * seconds / decay)
    size = fast_length(song.shape[-1] + tail.size)
    frequency = np.fft.rfftfreq(size, 1 / rate)
    response = np.fft.rfft(tail, size) / np.sqrt(1 + (frequency / 1500.0) ** 2)
    wet = np.fft.irfft(np.fft.rfft(song, size) * response, size)[..., : song.shape[-1]]
    return _add(song, wet, decibels)


def rms(wave: NDArray[np.floating]) -> float:
    """Root of the mean square; 0 of no samples."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if wave.size else 0.0


def _add(song: Wave, other: NDArray[np.floating], decibels: float) -> Wave:
    """The song plus something at a level relative to the song's RMS."""
    gain = 10 ** (decibels / 20) * rms(song) / max(rms(other), 1e-9)
    return np.asarray(song + gain * other, dtype=np.float32)


def _read(song: Wave, position: NDArray[np.float64]) -> Wave:
    """Cubic (Catmull-Rom) reading of a song at fractional positions, clamped at its ends."""
    last = song.shape[-1] - 1
    whole = np.floor(position).astype(int)
    t = (position - whole).astype(np.float32)
    a, b, c, d = (song[..., np.clip(whole + shift, 0, last)] for shift in (-1, 0, 1, 2))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.asarray(curve, dtype=np.float32)


# Each damage, its strength at severity 1, 2 and 3, and what the number means.
_DAMAGES: dict[str, tuple[Damage, tuple[float, float, float]]] = {
    "noise": (_noise, (14.0, 6.0, -2.0)),  # signal-to-noise ratio in dB
    "clipping": (_clipping, (1.0, 0.5, 0.2)),  # clipping level as a multiple of the song's RMS
    "low-pass": (_low_pass, (3000.0, 1400.0, 600.0)),  # cutoff in Hz
    "dropouts": (_dropouts, (0.08, 0.2, 0.4)),  # share of the time that is silent
    "hum": (_hum, (-12.0, -4.0, 4.0)),  # level of the hum against the song in dB
    "detuning": (_detuning, (-9.0, -4.0, 0.0)),  # level of the double against the song in dB
    "timing jitter": (_timing_jitter, (10.0, 30.0, 80.0)),  # largest displacement in milliseconds
    "reverb mud": (_reverb_mud, (-4.0, 3.0, 12.0)),  # level of the reverberation in dB
}
DAMAGES = tuple(_DAMAGES)
STRENGTHS = {name: strengths for name, (_, strengths) in _DAMAGES.items()}


@dataclass(frozen=True)
class DamageScores:
    """The mean of the aesthetic heads, (N, D, V) in [1, 5]; version 0 is the clean song."""

    values: NDArray[np.float64]

    @classmethod
    def of_versions(cls, means: NDArray[np.float64]) -> DamageScores:
        """From (N, 1 + 3 D) means: a song clean, then each damage at severity 1, 2 and 3."""
        damaged = means[:, 1:].reshape(len(means), len(DAMAGES), len(SEVERITIES))
        clean = np.broadcast_to(means[:, :1, None], (*damaged.shape[:2], 1))
        return cls(np.concatenate([clean, damaged], axis=2))

    def table(self) -> list[dict[str, str | float]]:
        """A row per damage and one for all: shares of pairs won and of falling series, mean drop.

        The clean version wins a pair where it scores higher. A series falls where the score falls
        at every step, clean > severity 1 > 2 > 3. Columns `drop_1` to `drop_3` are the mean score
        differences, clean minus damaged.
        """
        drops = self.values[..., :1] - self.values[..., 1:]
        falling = np.all(np.diff(self.values, axis=-1) < 0, axis=-1)
        parts = {name: slice(i, i + 1) for i, name in enumerate(DAMAGES)} | {"all": slice(None)}
        rows: list[dict[str, str | float]] = []
        for name, part in parts.items():
            mean = drops[:, part].mean(axis=(0, 1))
            rows.append({
                "damage": name,
                "pairs_won": float((drops[:, part] > 0).mean()),
                "series_falling": float(falling[:, part].mean()),
                **{f"drop_{s}": float(mean[i]) for i, s in enumerate(SEVERITIES)},
            })  # fmt: skip
        return rows


def score_damage(
    model: ApexReward, songs: Sequence[NDArray[np.float32]], sample_rate: int = 24_000
) -> DamageScores:
    """Score every song clean and with every damage at every severity.

    Args:
        songs: N mono songs (T,) at `sample_rate`; song i is damaged with seed i.
    """
    kinds = [(name, severity) for name in DAMAGES for severity in SEVERITIES]
    means = []
    for number, song in enumerate(songs):
        versions = [damage(song, *kind, number, sample_rate) for kind in kinds]
        for version in (song, *versions):
            with torch.no_grad():
                scores = model(torch.from_numpy(version)[None], sample_rate)
            means.append(float(scores.stack()[0, 2:].mean()))
    return DamageScores.of_versions(np.reshape(means, (len(songs), 1 + len(kinds))))
