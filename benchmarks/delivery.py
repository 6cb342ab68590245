"""What delivery does to a score: level, start, channels, codec, bit rate, resampler.

    python benchmarks/delivery.py SONGS... [--model apex-tiny] [--songs 20] [--seconds 29]
                                  [--output benchmarks/results/delivery.md]

SONGS are files or folders of real music. The same excerpt of each is delivered in many ways and
scored as it is and at a set loudness. A shift is the change of the reward in units of the spread
(the standard deviation) of the untouched songs; `order` is the share of all pairs of songs that
change their order when both are delivered that way.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from result_file import write_result
from scipy.signal import resample_poly

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.report.markdown import markdown_table
from apex_reward.scoring import find_audio

RATE = 44_100
START_SECONDS = 10.0
LOUDNESS = -18.0
Samples = NDArray[np.float32]  # (C, T)
Delivery = Callable[[Samples, Path], None]


def float_wav(samples: Samples, path: Path, rate: int = RATE) -> None:
    """A WAV of floats: nothing is lost or clipped."""
    soundfile.write(path, samples.T, rate, "FLOAT", format="WAV")


def eight_bits(samples: Samples, path: Path) -> None:
    """A WAV of 8 bits."""
    soundfile.write(path, samples.T, RATE, "PCM_U8", format="WAV")


def vorbis(samples: Samples, path: Path) -> None:
    """Ogg Vorbis by libsndfile, at its default quality."""
    with soundfile.SoundFile(path, "w", RATE, len(samples), "VORBIS", format="OGG") as file:
        for start in range(0, samples.shape[1], RATE):  # Vorbis crashes on long writes
            file.write(samples.T[start : start + RATE])


def by_ffmpeg(container: str, codec: str, bits: int, samples: Samples, path: Path) -> None:
    """Samples as FFmpeg's encoder of that name writes them, `bits` a second."""
    rate = 48_000 if codec == "libopus" else RATE
    layout = "stereo" if len(samples) == 2 else "mono"
    with av.open(str(path), "w", format=container) as file:
        track = file.add_stream(codec, rate, layout=layout)
        if not isinstance(track, av.AudioStream):
            raise SystemExit(f"{codec} encodes no sound")
        track.bit_rate = bits
        source = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.T).reshape(1, -1), format="flt", layout=layout
        )
        source.sample_rate, source.pts = RATE, 0
        track.codec_context.open()
        size = track.codec_context.frame_size or 1024
        converter = av.AudioResampler(track.format.name, layout, rate, size)
        for frame in [*converter.resample(source), *converter.resample(None)]:
            file.mux(track.encode(frame))
        file.mux(track.encode(None))


def changed(change: Callable[[Samples], Samples], samples: Samples, path: Path) -> None:
    """A WAV of floats of changed samples."""
    float_wav(np.ascontiguousarray(change(samples), dtype=np.float32), path)


def silence_first(samples: Samples) -> Samples:
    """Half a second of silence, then the song."""
    return np.pad(samples, ((0, 0), (RATE // 2, 0)))


def polyphase(samples: Samples, path: Path) -> None:
    """Resampled to 24 kHz by scipy's polyphase filter."""
    float_wav(resample_poly(samples, 80, 147, axis=1).astype(np.float32), path, 24_000)


def by_sinc(rate: int, samples: Samples, path: Path) -> None:
    """Resampled by this package's windowed sinc."""
    float_wav(resample(torch.from_numpy(samples), RATE, rate).numpy(), path, rate)


DELIVERIES: dict[str, Delivery] = {
    "as it is": float_wav,
    **{
        f"level {level:+d} dB": partial(
            changed, partial(np.multiply, np.float32(10 ** (level / 20)))
        )
        for level in (-12, -6, -3, 3, 6)
    },
    "starts 25 ms later": partial(changed, lambda x: x[:, round(0.025 * RATE) :]),
    "0.5 s of silence first": partial(changed, silence_first),
    "left channel only": partial(changed, lambda x: x[:1]),
    "right channel only": partial(changed, lambda x: x[-1:]),
    "MP3, 128 kbit/s": partial(by_ffmpeg, "mp3", "libmp3lame", 128_000),
    "MP3, 320 kbit/s": partial(by_ffmpeg, "mp3", "libmp3lame", 320_000),
    "Ogg Vorbis": vorbis,
    "Opus, 128 kbit/s": partial(by_ffmpeg, "ogg", "libopus", 128_000),
    "AAC in M4A, 128 kbit/s": partial(by_ffmpeg, "ipod", "aac", 128_000),
    "8 bit": eight_bits,
    "24 kHz by scipy": polyphase,
    "24 kHz by this package": partial(by_sinc, 24_000),
    "48 kHz by this package": partial(by_sinc, 48_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="+", help="files or folders of real music")
    parser.add_argument("--model", default="apex-tiny")
    parser.add_argument("--songs", type=int, default=20, help="at most; spread over the files")
    parser.add_argument("--seconds", type=float, default=29.0, help="of each song")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    started = time.perf_counter()
    songs = excerpts(options.paths, options.songs, options.seconds)
    rewards = {
        None: Reward(options.model, mix="aesthetics"),
        LOUDNESS: Reward(options.model, mix="aesthetics", loudness=LOUDNESS),
    }
    found: dict[str, dict[float | None, NDArray[np.float64]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, deliver in DELIVERIES.items():
            paths = [Path(folder) / f"{n}" for n in range(len(songs))]
            for samples, path in zip(songs, paths, strict=True):
                deliver(samples, path)
            heard = [load_audio(path) for path in paths]  # here: no worker starts 40 times
            found[name] = {
                loudness: np.array([row["reward_raw"] for row in reward.judge(heard)])
                for loudness, reward in rewards.items()
            }
            print(name, f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    text = (
        f"{options.model}, mix `aesthetics`; {options.seconds:g} s of {len(songs)} real songs. "
        "Shifts are in units of the spread between the untouched songs: "
        + " and ".join(f"{found['as it is'][key].std():.3f} {said(key)}" for key in rewards)
        + ". `mean` has a sign, `size` is the mean without it. `order` is the share of all pairs "
        f"that change their order.\n\n{table(found)}"
    )
    write_result("What delivery does to a score", text, options.output)


def excerpts(paths: list[str], count: int, seconds: float) -> list[Samples]:
    """Stereo excerpts (2, T) at 44.1 kHz of songs that are long enough."""
    long = [p for p in find_audio(paths) if soundfile.info(p).duration > START_SECONDS + seconds]
    if len(long) < 3:
        raise SystemExit(f"{len(long)} songs of {seconds + START_SECONDS:g} s; expected at least 3")
    songs = []
    for n in np.linspace(0, len(long) - 1, min(count, len(long))).round().astype(int):
        with soundfile.SoundFile(long[n]) as file:
            rate = file.samplerate
            file.seek(round(START_SECONDS * rate))
            samples = file.read(round(seconds * rate), dtype="float32", always_2d=True)
        stereo = np.broadcast_to(samples[:, :2], (len(samples), 2)).T
        songs.append(resample(torch.from_numpy(stereo.copy()), rate, RATE).numpy())
    return songs


def said(loudness: float | None) -> str:
    """A setting in words."""
    return "as they are" if loudness is None else f"at {loudness:g} LUFS"


def table(found: dict[str, dict[float | None, NDArray[np.float64]]]) -> str:
    """A row per delivery: shifts and changed orders of both settings."""
    plain = found["as it is"]
    rows: list[list[object]] = []
    for name, values in found.items():
        if name == "as it is":
            continue
        row: list[object] = [name]
        for key, own in plain.items():
            shift = (values[key] - own) / own.std()
            row += [f"{shift.mean():+.3f}", f"{np.abs(shift).mean():.3f}",
                    f"{np.abs(shift).max():.3f}", f"{turned(own, values[key]):.1%}"]  # fmt: skip
        rows.append(row)
    columns = [f"{what} {said(key)}" if what == "mean" else what
               for key in plain for what in ("mean", "size", "largest", "order")]  # fmt: skip
    return markdown_table(["delivery", *columns], rows)


def turned(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Share of all pairs of songs that change their order."""
    pairs = list(itertools.combinations(range(len(before)), 2))
    return sum((before[i] > before[j]) != (after[i] > after[j]) for i, j in pairs) / len(pairs)


if __name__ == "__main__":
    main()
