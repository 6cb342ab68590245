"""Synthetic songs: chords, melody, bass and drums of varied timbre, tempo, tuning and mastering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apex_reward.demo.damage import rms
from apex_reward.demo.instruments import (
    Array,
    Rng,
    draw_voice,
    drum,
    note,
    reverb,
    shape,
)

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 2, 4, 7, 9))
PROGRESSIONS = (
    (0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 0, 4), (0, 0, 3, 4), (1, 4, 0, 0), (0, 6, 5, 6)
)  # fmt: skip
# Vowel formants in Hz: a, e, i, o, u.
VOWELS = np.array(
    [(800, 1150, 2900), (400, 1700, 2600), (350, 2100, 2900), (450, 800, 2830), (325, 700, 2700)]
)


def make_song(seed: int, seconds: float = 20.0, sample_rate: int = 24_000) -> NDArray[np.float32]:
    """A song made by rules from a seed; the same arguments give the same samples.

    Style is random in every respect that a listener would not call damage: key, tuning, tempo,
    swing, density, instruments, vibrato, distortion of single instruments, room, brightness,
    compression and loudness.

    Args:
        seconds: length of the result; the song goes on past its end.
        sample_rate: in Hz.

    Returns:
        (T,) float32 samples in [-1, 1].
    """
    rng = np.random.default_rng([seed, 7])
    beat = 60 / rng.uniform(65, 175)
    root = rng.uniform(-6, 6)  # fractional: songs are not all tuned to 440 Hz
    scale = SCALES[rng.integers(len(SCALES))]
    chords = _chords(rng, scale, seconds, beat)
    dense = rng.uniform(0.25, 1.0)
    band = Band(rng, sample_rate, round(seconds * sample_rate), beat, root, scale, chords)
    parts = [band.chord_part()]
    if rng.random() < 0.9:
        parts.append(band.bass_part())
    if rng.random() < 0.9:
        parts.append(band.drum_part(dense))
    parts += [band.chord_part() for _ in range(rng.binomial(3, dense))]
    parts += [band.melody() for _ in range(1 + rng.binomial(3, 0.6 * dense))]
    mix = np.zeros(band.length)
    for part in parts:
        mix += part * np.exp(rng.normal(0, 0.6)) / max(rms(part), 1e-6)
    return _master(rng, mix, sample_rate)


def _chords(rng: Rng, scale: tuple[int, ...], seconds: float, beat: float) -> list[Array]:
    """Per bar of four beats the MIDI offsets of a chord of three or four notes."""
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    voices = int(rng.integers(3, 5))
    chords = []
    for bar in range(int(seconds / beat / 4) + 1):
        degree = progression[bar % 4] + 2 * np.arange(voices)
        chords.append(_pitches(scale, degree))
    return chords


def _pitches(scale: tuple[int, ...], degree: NDArray[np.integer]) -> Array:
    """MIDI offsets of scale degrees, in as many octaves as they need."""
    octave, step = np.divmod(degree, len(scale))
    return np.asarray(np.take(scale, step) + 12.0 * octave)


@dataclass(frozen=True)
class Band:
    """Plays the parts of one song, each (T,) samples with an instrument drawn at random.

    Attributes:
        rng: every choice comes from it, in the order in which parts are played.
        rate: in Hz.
        length: T.
        beat: in s.
        root: of the scale, in semitones.
        chords: MIDI offsets of each bar's notes.
    """

    rng: Rng
    rate: int
    length: int
    beat: float
    root: float
    scale: tuple[int, ...]
    chords: list[Array]

    def chord_part(self) -> Array:
        """Chords held, struck in a rhythm, or broken into single notes."""
        rng, rate, beat, out = self.rng, self.rate, self.beat, np.zeros(self.length)
        voice = draw_voice(rng, "pad" if rng.random() < 0.4 else "pluck")
        base = 48 + self.root + 12 * rng.integers(0, 2)
        style = rng.integers(3)
        pattern = np.flatnonzero(rng.random(8) < 0.45) / 2
        pattern = pattern if pattern.size else np.array([0.0])
        for bar, chord in enumerate(self.chords):
            start = bar * 4 * beat
            if style == 2:
                for step in range(8):
                    pitch = base + chord[step % chord.size] + 12 * (step // chord.size % 2)
                    wave = note(rng, voice, pitch, beat / 2, rate)
                    self._place(out, start + step * beat / 2, wave)
                continue
            held = 4 * beat if style == 0 else beat * 0.45
            strum, struck = rng.uniform(0, 0.012), np.zeros(int(held * rate))
            for i, offset in enumerate(chord):
                wave = np.pad(
                    note(rng, voice, base + offset, held, rate), (int(i * strum * rate), 0)
                )
                struck = struck + wave[: struck.size]
            for place in (0.0,) if style == 0 else pattern:
                self._place(out, start + place * beat, struck * rng.uniform(0.7, 1.0))
        return self._coloured(out)

    def bass_part(self) -> Array:
        """One to eight notes a bar, most of them the chord's lowest."""
        rng, beat, out = self.rng, self.beat, np.zeros(self.length)
        voice = draw_voice(rng, "bass")
        per_bar = int(rng.choice([1, 2, 4, 8]))
        for bar, chord in enumerate(self.chords):
            for step in range(per_bar):
                pitch = 36 + self.root % 12 + chord[0] % 12 + (12 if rng.random() < 0.15 else 0)
                held = 4 * beat / per_bar * rng.uniform(0.6, 1.0)
                start = (bar * 4 + step * 4 / per_bar) * beat
                self._place(out, start, note(rng, voice, pitch, held, self.rate))
        return self._coloured(out)

    def melody(self) -> Array:
        """A wandering line with rests, played or sung (moving vowel formants)."""
        rng, rate, out = self.rng, self.rate, np.zeros(self.length)
        sung = rng.random() < 0.6
        voice = draw_voice(rng, "sung" if sung else str(rng.choice(["lead", "pluck"])))
        base = 60 + self.root % 12 - (12 if rng.random() < 0.3 else 0)
        degree, time = int(rng.integers(0, 7)), 0.0
        while time < self.length / rate:
            held = self.beat * float(rng.choice([0.5, 0.5, 1.0, 1.5, 2.0]))
            if rng.random() < 0.8:
                degree = int(np.clip(degree + rng.integers(-2, 3), -3, 11))
                pitch = base + float(_pitches(self.scale, np.array([degree]))[0])
                formants = VOWELS[rng.integers(0, 5, 2)] * rng.uniform(0.9, 1.2) if sung else None
                wave = note(rng, voice, pitch, held * rng.uniform(0.7, 1.0), rate, formants)
                self._place(out, time, wave * rng.uniform(0.6, 1.0))
                if sung and rng.random() < 0.3:  # a consonant
                    self._place(out, time - 0.05, drum(rng, "shaker", rate) * rng.uniform(0.3, 2.0))
            time += held
        return self._coloured(out)

    def drum_part(self, dense: float) -> Array:
        """A sixteenth-note grid of kick, snare, hats and cymbals, with swing and ghost notes."""
        rng, out, sixteenths = self.rng, np.zeros(self.length), np.arange(16)
        swing = rng.uniform(0, 0.12) if rng.random() < 0.4 else 0.0
        steps = np.arange(int(self.length / self.rate / self.beat * 4) + 1)
        times = (steps / 4 + swing * (steps % 2)) * self.beat
        kick = np.isin(sixteenths, (0, 8)) | (rng.random(16) < 0.15 * dense)
        snare = np.isin(sixteenths, (4, 12)) | (rng.random(16) < 0.06 * dense)
        hat = sixteenths % int(rng.choice([1, 2, 2, 4])) == 0
        open_hat = rng.random(16) < 0.08
        crash = (sixteenths == 0) & (rng.random() < 0.4)
        lines = (
            ("kick", kick, rng.uniform(0.7, 2.5)),
            ("snare", snare, 0.7),
            ("hat", hat, rng.uniform(0.08, 0.5)),
            ("open", open_hat, rng.uniform(0.1, 0.4)),
            ("crash", crash, rng.uniform(0.1, 0.5)),
            ("shaker", rng.random(16) < 0.3 * dense, rng.uniform(0.05, 0.3)),
        )
        for kind, pattern, level in lines:
            hit = drum(rng, kind, self.rate)
            for step in steps[pattern[steps % 16]]:
                self._place(out, float(times[step]), hit * level * rng.uniform(0.6, 1.0))
        return self._coloured(out, drive=False)

    def _place(self, out: Array, start: float, wave: Array) -> None:
        """Add a sound at a time in seconds, cut at both ends of the song."""
        first = int(start * self.rate)
        if 0 <= first < out.size:
            stop = min(first + wave.size, out.size)
            out[first:stop] += wave[: stop - first]

    def _coloured(self, wave: Array, drive: bool = True) -> Array:
        """An instrument's own effects: now and then overdrive, often a room."""
        rng = self.rng
        if drive and rng.random() < 0.25:
            level = max(rms(wave), 1e-6) / rng.uniform(0.4, 4.0)
            corner = rng.uniform(2500, 9000)
            wave = shape(np.tanh(wave / level), self.rate, lambda f: 1 / (1 + (f / corner) ** 4))
        if rng.random() < 0.7:
            wet = 10 ** (rng.uniform(-24, -7) / 20)
            wave = reverb(rng, wave, self.rate, float(rng.uniform(0.2, 1.8)), wet)
        return wave


def _master(rng: Rng, mix: Array, rate: int) -> NDArray[np.float32]:
    """Equaliser, tilt, faint hiss, compressor, soft limiter, loudness."""
    knots = np.log(np.array([20, 80, 200, 500, 1200, 3000, 6000, 9000, 12000.0]))
    gains = rng.normal(0, 3, knots.size) + rng.uniform(-2.0, 4.0) * (knots - knots[4]) / np.log(2)
    if rng.random() < 0.4:  # heavy bass
        gains[:3] += rng.uniform(0, 14)
    if rng.random() < 0.25:  # as a lossy codec cuts
        gains[-1] -= 60
    hiss = 10 ** (rng.uniform(-75, -42) / 20) * max(rms(mix), 1e-6)
    mix = mix + hiss * rng.standard_normal(mix.size)
    mix = shape(mix, rate, lambda f: 10 ** (np.interp(np.log(f + 1), knots, gains) / 20))
    mix = shape(mix, rate, lambda f: f / (f + 25))  # no constant part
    mix = mix / max(rms(mix), 1e-9)
    size = int(rng.uniform(0.02, 0.2) * rate)
    level = np.sqrt(np.maximum(_moving_mean(mix**2, size), 1e-4))
    mix = mix * level ** (-rng.uniform(0.0, 0.7))
    headroom = rng.uniform(2.5, 9.0) * rms(mix)
    return _levelled(np.tanh(mix / headroom), rng.uniform(-26, -10))


def _levelled(wave: Array, decibels: float) -> NDArray[np.float32]:
    """At this RMS level; turned down to a peak of 1 where the level would pass it."""
    wave = wave / max(rms(wave), 1e-9) * 10 ** (decibels / 20)
    return np.asarray(wave / max(float(np.abs(wave).max()), 1.0), dtype=np.float32)


def _moving_mean(values: Array, size: int) -> Array:
    """Mean over `size` samples around each sample (fewer at the ends)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    low, high = np.maximum(index - size // 2, 0), np.minimum(index + size // 2 + 1, values.size)
    return np.asarray((sums[high] - sums[low]) / (high - low))
