"""Does apex-tiny rank songs above noise, tones, silence and clipped songs?

    python benchmarks/junk.py --audio FOLDER --output benchmarks/results/junk.md

Forty unseen synthetic songs and every window of 20 s of the real recordings in FOLDER, each against
junk of 4, 12 and 40 s, under three rewards. A pair is right where the song's reward is higher.
Recordings that hold steady noise (`--noise`) count as junk, not as songs. Every real window with a
wrong pair is listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from result_file import write_result

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.demo import make_song
from apex_reward.report.markdown import markdown_table

RATE, WINDOW, LENGTHS, SONGS = 24_000, 20, (4, 12, 40), 40
REWARDS = {
    "aesthetics": {"mix": "aesthetics"},
    "overall": {"mix": "overall"},
    "README's": {"mix": "aesthetics", "loudness": -18.0, "guards": "penalty", "caution": 0.5},
}


def steady_sounds(seconds: int) -> dict[str, np.ndarray]:
    """Noise, hum, tones and silence of a length."""
    rng, time = np.random.default_rng(seconds), np.arange(seconds * RATE) / RATE
    spectrum = np.fft.rfft(rng.standard_normal(time.size))
    pink = np.fft.irfft(spectrum / np.sqrt(np.arange(1, spectrum.size + 1)), time.size)
    return {
        "white noise": 0.1 * rng.standard_normal(time.size),
        "uniform noise": rng.uniform(-0.5, 0.5, time.size),
        "pink noise": 0.1 * pink / pink.std(),
        "hum of 50 Hz": 0.3 * np.sin(100 * np.pi * time),
        "sine": 0.3 * np.sin(880 * np.pi * time),
        "square wave": 0.3 * np.sign(np.sin(880 * np.pi * time)),
        "silence": np.zeros(time.size),
    }


def clipped(song: np.ndarray) -> np.ndarray:
    """A song clipped at a tenth of its peak."""
    ceiling = 0.1 * np.abs(song).max()
    return np.clip(song, -ceiling, ceiling)


def windows(file: Path) -> dict[str, np.ndarray]:
    """Windows of 20 s of a recording, mono at 24 kHz, by name and start."""
    audio = load_audio(file)
    mono = torch.from_numpy(audio.samples.mean(axis=0))
    wave = resample(mono, audio.sample_rate, RATE).numpy()
    starts = range(0, wave.size // RATE - WINDOW + 1, WINDOW)
    return {f"{file.stem} {s} s": wave[s * RATE : (s + WINDOW) * RATE] for s in starts}


def rewards(name: str, sounds: Sequence[np.ndarray]) -> np.ndarray:
    """The rewards of sounds; one that cannot be judged has NaN."""
    waves = [np.asarray(sound, np.float32) for sound in sounds]
    rows = Reward("apex-tiny", **REWARDS[name]).judge(waves, sample_rate=RATE)
    return np.array([np.nan if row["reward"] is None else row["reward"] for row in rows])


def main() -> None:
    """Score, compare and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, help="folder of real recordings")
    parser.add_argument(
        "--noise", nargs="*", default=["music_arena_debug_a", "music_arena_debug_b"]
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    songs = [make_song(2**42 + n, max(LENGTHS)) for n in range(SONGS)]
    junk, kinds = [], []
    for seconds in LENGTHS:
        sounds = steady_sounds(seconds)
        junk += [*sounds.values(), *(clipped(song[: seconds * RATE]) for song in songs)]
        kinds += [*sounds, *["clipped songs"] * SONGS]
    real: dict[str, np.ndarray] = {}
    for file in sorted(options.audio.iterdir()) if options.audio else ():
        found = windows(file)
        if file.stem in options.noise:
            junk += found.values()
            kinds += ["recorded noise"] * len(found)
        else:
            real |= found
    clean = [song[: WINDOW * RATE] for song in songs]
    table, exceptions = [], []
    for name in REWARDS:
        values = rewards(name, [*clean, *real.values(), *junk])
        bad = values[SONGS + len(real) :]
        for title, own in (("synthetic", values[:SONGS]), ("real", values[SONGS : -len(junk)])):
            right = own[:, None] > bad
            for kind in dict.fromkeys(kinds):
                at = np.array([one == kind for one in kinds])
                if own.size:
                    table.append(
                        (name, title, kind, right[:, at].size, f"{right[:, at].mean():.1%}")
                    )
            if own.size:
                table.append((name, title, "all", right.size, f"{right.mean():.1%}"))
        for window, value in zip(real, values[SONGS:], strict=False):
            wrong = [k for k, v in zip(kinds, bad, strict=True) if not value > v]
            counts = ", ".join(f"{wrong.count(k)} {k}" for k in dict.fromkeys(wrong))
            if wrong:
                exceptions.append((name, window, f"{value:.3f}", counts))
    write_result(
        "Songs against junk",
        f"apex-tiny, a demonstration model. {SONGS} synthetic songs and {len(real)} real windows "
        f"of {WINDOW} s; junk of {', '.join(map(str, LENGTHS))} s.\n\n"
        + markdown_table(("reward", "songs", "junk", "pairs", "right"), table)
        + "\n\n## Real windows with wrong pairs\n\n"
        + markdown_table(
            ("reward", "window", "its reward", "junk with at least its reward"), exceptions
        ),
        options.output,
    )


if __name__ == "__main__":
    main()
