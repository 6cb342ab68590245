"""Voices of the synthetic songs: wavetable notes, drum hits and effects, all in whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rng = np.random.Generator

TABLE = 2048  # samples of one wavetable cycle
STEPS = 8  # wavetables from the brightest (attack) to the dullest (tail)
# Shortest and longest decay in s, and the typical corner frequency in Hz, of drums of noise.
DRUMS = {"snare": (0.04, 0.14, 1500.0), "hat": (0.012, 0.05, 6000.0), "open": (0.12, 0.35, 6000.0),
         "crash": (0.4, 1.2, 6000.0), "shaker": (0.02, 0.06, 5000.0)}  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """How an instrument sounds; drawn at random by `draw_voice`.

    `tables` is (STEPS, harmonics): harmonic amplitudes, brightest first.
    """

    tables: Array
    phases: Array
    attack: float
    decay: float  # seconds to fall by 60 dB; infinite for sustained sounds
    release: float
    vibrato_cents: float
    vibrato_rate: float
    unison_cents: float
    breath: float
    glide: float


def draw_voice(rng: Rng, kind: str) -> Voice:
    """A random instrument of a kind: `pluck`, `pad`, `lead`, `sung` or `bass`."""
    harmonics = 48
    k = np.arange(1, harmonics + 1)
    slope = rng.uniform(0.5, 2.2) if kind != "bass" else rng.uniform(0.9, 2.4)
    base = k**-slope * np.exp(rng.normal(0, 0.6, harmonics))
    if rng.random() < 0.3:
        base[1::2] *= rng.uniform(0.02, 0.4)  # hollow, like a clarinet or a square wave
    dulling = np.linspace(0, rng.uniform(0.1, 2.0), STEPS)[:, None]
    sustained = kind in ("pad", "lead", "sung") or rng.random() < 0.3
    melodic = kind in ("lead", "sung")
    # Arguments draw in this order; another order gives other songs.
    return Voice(
        tables=base * k**-dulling,
        phases=rng.uniform(0, 2 * np.pi, harmonics),
        attack=rng.uniform(0.03, 0.3) if kind == "pad" else np.exp(rng.uniform(np.log(0.001), -3)),
        decay=np.inf if sustained else np.exp(rng.uniform(np.log(0.25), np.log(3.0))),
        release=rng.uniform(0.02, 0.25),
        vibrato_cents=rng.uniform(0, 45) if melodic else 0.0,
        vibrato_rate=rng.uniform(4.5, 7.0),
        unison_cents=rng.choice([0.0, 0.0, rng.uniform(2, 14)]),
        breath=rng.uniform(0.0, 0.08) if melodic else 0.0,
        glide=rng.uniform(0.0, 0.08) if melodic else 0.0,
    )


def note(
    rng: Rng, voice: Voice, pitch: float, seconds: float, rate: int, formants: Array | None = None
) -> Array:
    """One note.

    Args:
        pitch: MIDI number, fractional for other tunings.
        seconds: held time; the release comes after it.
        formants: (2, 3) vowel formants in Hz at the note's start and end, or None.
    """
    length = int((seconds + voice.release) * rate)
    t = np.arange(length) / rate
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    tables = _tables(voice, frequency, rate, formants)
    bend = voice.vibrato_cents * np.minimum(t / 0.4, 1) * np.sin(2 * np.pi * voice.vibrato_rate * t)
    if voice.glide:
        bend = bend - 120 * np.exp(-t / voice.glide)
    step = frequency / rate * TABLE * 2 ** (bend / 1200)
    place = np.linspace(0, STEPS - 1.001, length)
    row = place.astype(int)
    blend = place - row
    out = np.zeros(length)
    copies = (0.0,) if voice.unison_cents == 0 else (-voice.unison_cents, voice.unison_cents)
    for cents in copies:
        phase = np.cumsum(step * 2 ** (cents / 1200)) + rng.uniform(0, TABLE)
        index = phase.astype(np.int64) % TABLE
        out += (1 - blend) * tables[row, index] + blend * tables[row + 1, index]
    if voice.breath:
        out += voice.breath * rng.standard_normal(length) * np.abs(tables).max()
    return out * _envelope(voice, t, seconds)


def _tables(voice: Voice, frequency: float, rate: int, formants: Array | None) -> Array:
    """(STEPS, TABLE) cycles without partials above the Nyquist frequency."""
    k = np.arange(1, voice.tables.shape[1] + 1)
    amplitudes = voice.tables * (k * frequency < 0.47 * rate)
    if formants is not None:
        path = np.linspace(formants[0], formants[1], STEPS)  # (STEPS, 3)
        distance = (k[None, :, None] * frequency - path[:, None, :]) / (
            90 + 0.07 * path[:, None, :]
        )
        amplitudes = amplitudes * (0.05 + (1 / (1 + distance**2)).sum(axis=2))
    spectrum = np.zeros((STEPS, TABLE // 2 + 1), dtype=complex)
    spectrum[:, 1 : k.size + 1] = amplitudes * np.exp(1j * voice.phases)
    tables = np.fft.irfft(spectrum, TABLE)
    return np.asarray(tables / max(float(np.sqrt((tables[0] ** 2).mean())), 1e-9))


def _envelope(voice: Voice, t: Array, seconds: float) -> Array:
    rise = np.minimum(t / max(voice.attack, 1e-3), 1.0)
    fall = np.ones_like(t) if np.isinf(voice.decay) else 10 ** (-3 * t / voice.decay)
    end = np.clip(1 - (t - seconds) / voice.release, 0.0, 1.0)
    return np.asarray(rise * fall * end**2)


def drum(rng: Rng, kind: str, rate: int) -> Array:
    """One hit of a random drum: `kick`, `snare`, `hat`, `open`, `crash` or `shaker`."""
    if kind == "kick":
        t = np.arange(int(0.45 * rate)) / rate
        low, sweep = rng.uniform(40, 65), rng.uniform(60, 300)
        phase = 2 * np.pi * (low * t + sweep * 0.03 * (1 - np.exp(-t / 0.03)))
        click = rng.uniform(0, 0.6) * rng.standard_normal(t.size) * np.exp(-t / 0.004)
        return np.asarray(np.sin(phase) * np.exp(-t / rng.uniform(0.06, 0.18)) + click)
    low, high, corner = DRUMS[kind]
    fall = rng.uniform(low, high)
    t = np.arange(int(min(6 * fall, 2.5) * rate)) / rate
    noise = rng.standard_normal(t.size)
    corner *= np.exp(rng.normal(0, 0.3))
    noise = shape(noise, rate, lambda f: (f / corner) ** 2 / (1 + (f / corner) ** 2))
    if kind in ("hat", "open", "crash"):  # metallic partials
        partials = rng.uniform(3000, 10500, 10)[:, None]
        noise = noise + rng.uniform(0, 0.5) * np.sin(2 * np.pi * partials * t).sum(axis=0)
    if kind == "snare":
        tone = rng.uniform(150, 260)
        noise = noise + rng.uniform(0.5, 2) * np.sin(2 * np.pi * tone * t) * np.exp(-t / 0.05)
    attack = np.minimum(t / (0.012 if kind == "shaker" else 0.001), 1)
    return np.asarray(noise * attack * np.exp(-t / fall))


def shape(wave: Array, rate: int, gain: Callable[[NDArray[np.floating]], Array]) -> Array:
    """Filter by a function from frequency in Hz to gain, without phase shift."""
    size = fast_length(wave.size)
    frequency = np.fft.rfftfreq(size, 1 / rate)
    return np.asarray(np.fft.irfft(np.fft.rfft(wave, size) * gain(frequency), size)[: wave.size])


def reverb(rng: Rng, wave: Array, rate: int, seconds: float, wet: float) -> Array:
    """A little room: exponentially decaying noise after a short delay, added at gain `wet`."""
    t = np.arange(int(seconds * rate)) / rate
    response = rng.standard_normal(t.size) * 10 ** (-3 * t / seconds)
    response /= np.sqrt((response**2).sum())
    response = np.concatenate([np.zeros(int(rng.uniform(0.005, 0.03) * rate)), response])
    size = fast_length(wave.size + response.size)
    dark = 1 / (1 + (np.fft.rfftfreq(size, 1 / rate) / rng.uniform(2500, 9000)) ** 2)
    echo = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size) * dark, size)
    return np.asarray(wave + wet * echo[: wave.size])


def fast_length(length: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5 (one odd factor of 1 to 15)."""
    return min(
        odd * 2 ** max(0, int(np.ceil(np.log2(max(length, 1) / odd)))) for odd in (1, 3, 5, 9, 15)
    )
