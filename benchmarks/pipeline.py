"""Decoding ahead of the encoder: songs a second by format, workers for a GPU, what overlaps.

    python benchmarks/pipeline.py [--seconds 180] [--songs 8] [--files DIR]
                                  [--output benchmarks/results/pipeline.md]

Made-up stereo songs of chords and noise; `--files` names a folder of further ones, one a format
(libsndfile writes no M4A). Costs are processor seconds of a song: of the worker that decodes it,
and of the process that reads it from there. The first table's figures set the second's. In the
third a stand-in for a GPU sleeps for as long as one of that speed would encode: `busy` is its share
of the run's time, beside what it would be if nothing overlapped.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from result_file import write_result
from torch import Tensor

from apex_reward import Head, Reward, Scores
from apex_reward.audio.decoding import DecodeSettings, decode_songs
from apex_reward.audio.resample import resample
from apex_reward.audio.segment import Segments, cut_segments
from apex_reward.model.encode import EncodedModel
from apex_reward.report.markdown import markdown_table
from apex_reward.scoring import score_songs

RATE, SEGMENT = 24_000, 720_000
FORMATS = {  # ending: (rate, format, subtype)
    "wav": (44_100, "WAV", "PCM_16"),
    "flac": (44_100, "FLAC", "PCM_16"),
    "mp3": (44_100, "MP3", "MPEG_LAYER_III"),
    "ogg": (44_100, "OGG", "VORBIS"),
    "opus": (48_000, "OGG", "OPUS"),
}
GPUS = (500, 1_000, 2_000, 5_000, 10_000, 15_000)
SLEEPERS = (100, 300, 1_000)


class Sleeper:
    """An encoder that takes a GPU's time and no processor's."""

    name, sample_rate, batch_segments, by_length = "sleeper", RATE, 4, False
    window: int | None = SEGMENT

    def __init__(self, speed: float) -> None:
        self.speed, self.busy = speed, 0.0

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """30-second segments."""
        return cut_segments(songs, lengths, SEGMENT, RATE)

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """Means, after so long."""
        seconds = samples.numel() / RATE / self.speed
        time.sleep(seconds)
        self.busy += seconds
        return samples.mean(dim=1, keepdim=True)

    def fingerprint(self) -> Hashable:
        """Its name."""
        return self.name


class SleepingModel(EncodedModel):
    """One head over a `Sleeper`."""

    name = "sleeper"
    heads = (Head("mean", -1.0, 1.0),)

    def __init__(self, speed: float) -> None:
        self.encoder = Sleeper(speed)

    @property
    def encoders(self) -> tuple[Sleeper, ...]:
        """The one."""
        return (self.encoder,)

    def score_features(self, features: Sequence[Tensor], prompts: object = None) -> Scores:
        """The mean itself."""
        return Scores.from_stack(features[0], self.heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="length of a song")
    parser.add_argument("--songs", type=int, default=8)
    parser.add_argument("--files", type=Path, help="folder of further songs, one a format")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = written(Path(folder), options.seconds)
        paths += sorted(map(str, options.files.iterdir())) if options.files else []
        formats, costs = by_format(paths, options.songs)
        overlaps = overlap(next(path for path in paths if path.endswith("mp3")), options.songs)
    text = (
        f"Stereo songs of {options.seconds:g} s; `x real time` is seconds of sound a second.\n\n"
        f"{formats}\n\nWorkers that keep a GPU busy, by how fast it encodes; each is a core:\n\n"
        f"{workers(costs, options.seconds)}\n\n"
        f"A stand-in for a GPU beside the decoding of MP3, {options.songs} songs:\n\n{overlaps}"
    )
    write_result("Decoding and the pipeline", text, options.output)


def written(folder: Path, seconds: float) -> list[str]:
    """One song in every format that libsndfile writes."""
    random, paths = np.random.default_rng(0), []
    for ending, (rate, kind, subtype) in FORMATS.items():
        t = np.arange(round(rate * seconds)) / rate
        notes = np.array([110, 164.8, 220, 277.2, 440])
        chord = np.sin(2 * np.pi * t[:, None] * notes).sum(axis=1)
        samples = 0.08 * chord[:, None] + 0.02 * random.standard_normal((len(t), 2))
        paths.append(str(folder / f"song.{ending}"))
        with soundfile.SoundFile(paths[-1], "w", rate, 2, subtype, format=kind) as file:
            for start in range(0, len(samples), rate):  # Vorbis crashes on long writes
                file.write(samples[start : start + rate])
    return paths


def by_format(paths: Sequence[str], songs: int) -> tuple[str, dict[str, tuple[float, float]]]:
    """The table, and CPU seconds of worker and reader for a second of sound, by format."""
    rows, costs = [], {}
    for path in paths:
        (song,) = decode_songs([path], DecodeSettings(30.0, RATE))
        mono, ending = torch.from_numpy(song.mono), Path(path).suffix[1:]
        seconds = len(mono) / song.sample_rate
        once, several = read_through_worker(path, 1), read_through_worker(path, songs + 1)
        # The difference leaves out the worker's start.
        worker, reader = ((b - a) / songs for a, b in zip(once, several, strict=True))
        filtered = taken(partial(resample, mono, song.sample_rate, RATE))
        alone = f"{1000 * taken(partial(plainly, path)):.0f}" if ending in FORMATS else ""
        costs[ending] = worker / seconds, reader / seconds
        rows.append(
            [ending, f"{8 * os.path.getsize(path) / seconds / 1000:.0f}", alone,
             f"{1000 * worker:.0f}", f"{1000 * reader:.0f}", f"{1000 * filtered:.0f}",
             f"{1 / worker:.1f}", f"{seconds / worker:,.0f}"]
        )  # fmt: skip
        print(rows[-1], flush=True)
    columns = ["format", "kbit/s", "libsndfile alone, CPU ms", "worker, CPU ms", "reader, CPU ms",
               "resampling where no GPU does it, CPU ms", "songs/s a worker",
               "x real time a worker"]  # fmt: skip
    return markdown_table(columns, rows), costs


def plainly(path: str) -> None:
    """Decode with libsndfile alone: no mono mix, no checks, no pipe."""
    with soundfile.SoundFile(path) as file:
        while len(file.read(1 << 17, dtype="float32")):
            pass


def taken(work: Callable[[], object]) -> float:
    """CPU seconds, the least of three times."""
    found = []
    for _ in range(3):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def read_through_worker(path: str, songs: int) -> tuple[float, float]:
    """CPU seconds of one worker and of this process, which reads it."""
    before, own = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    for song in decode_songs([path] * songs, DecodeSettings(30.0, RATE), workers=1):
        if song.error:
            raise SystemExit(f"{path}: {song.error}")
        song.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worker = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return worker, time.process_time() - own


def workers(costs: dict[str, tuple[float, float]], seconds: float) -> str:
    """How many each GPU wants, and how fast one process reads at most."""
    rows = [
        [f"{speed:,}", f"{speed / seconds:.1f}",
         *(math.ceil(speed * worker) for worker, _ in costs.values())]
        for speed in GPUS
    ]  # fmt: skip
    rows.append(
        ["one process reads at most, x real time", "",
         *(f"{1 / reader:,.0f}" for _, reader in costs.values())]
    )  # fmt: skip
    return markdown_table(["GPU, x real time", "songs/s", *costs], rows)


def overlap(path: str, songs: int) -> str:
    """How busy the stand-in is, by its speed and the number of workers."""
    rows = []
    for speed in SLEEPERS:
        for count in (0, 1, 2):
            model = SleepingModel(speed)
            started = time.perf_counter()
            result = list(score_songs(Reward(model, mix="mean=1"), [path] * songs, workers=count))
            wall = time.perf_counter() - started
            if any(row["error"] for row in result):
                raise SystemExit(f"{path}: {result[0]['error']}")
            rows.append(
                [f"{speed:,}", count, f"{wall:.1f}", f"{model.encoder.busy:.1f}",
                 f"{model.encoder.busy / wall:.0%}"]
            )  # fmt: skip
            print(rows[-1], flush=True)
    return markdown_table(["GPU, x real time", "workers", "seconds", "of them GPU", "busy"], rows)


if __name__ == "__main__":
    main()
