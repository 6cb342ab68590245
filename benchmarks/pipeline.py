"""Decoding ahead of the encoder: songs a second by format, workers for a GPU, what overlaps.

    python benchmarks/pipeline.py [--seconds 180] [--songs 8] [--files DIR] [--former FOLDER]
                                  [--output benchmarks/results/pipeline.md]

Made-up stereo songs of chords and noise; `--files` names a folder of further ones, one a format
(libsndfile writes no M4A). Costs are processor seconds of a song: of the worker that decodes it,
and of the process that reads it from there. `alone` are the decoders without mono mix, checks and
pipe: libsndfile, and FFmpeg through PyAV. `--former` names a checkout of an earlier build, whose
worker decodes the same files in turns. The first table's figures set the second's. In the
third a stand-in for a GPU sleeps for as long as one of that speed would encode: `busy` is its share
of the run's time, beside what it would be if nothing overlapped.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from builds import builds, in_turns
from result_file import write_result
from torch import Tensor

from apex_reward import Head, Reward, Scores
from apex_reward.audio.decoding import DecodeSettings, decode_songs
from apex_reward.audio.resample import resample
from apex_reward.model.encode import EncodedModel, Pieces
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
# CPU seconds of one worker and of the process that reads it, a song: more songs less one, so that
# the worker's start is left out.
THROUGH_WORKER = """
import resource, sys, time
from apex_reward.audio.decoding import DecodeSettings, decode_songs

def used(songs):
    before, own = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    for song in decode_songs([sys.argv[1]] * songs, DecodeSettings(30.0, 24_000), workers=1):
        if song.error:
            raise SystemExit(song.error)
        song.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worker = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return worker, time.process_time() - own

songs = int(sys.argv[2])
print(*(f"{(b - a) / songs:.6f}" for a, b in zip(used(1), used(songs + 1))))
"""


class Sleeper(Pieces):
    """An encoder that takes a GPU's time and no processor's."""

    name, sample_rate, batch_segments, window = "sleeper", RATE, 4, SEGMENT

    def __init__(self, speed: float) -> None:
        self.speed, self.busy = speed, 0.0

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
    parser.add_argument("--former", type=Path, help="checkout of an earlier build")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = written(Path(folder), options.seconds)
        paths += sorted(map(str, options.files.iterdir())) if options.files else []
        formats, costs = by_format(paths, options.songs, options.former)
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


def by_format(
    paths: Sequence[str], songs: int, former: Path | None
) -> tuple[str, dict[str, tuple[float, float]]]:
    """The table, and CPU seconds of worker and reader for a second of sound, by format."""
    rows, costs, places = [], {}, builds(former)
    for path in paths:
        (song,) = decode_songs([path], DecodeSettings(30.0, RATE))
        mono, ending = torch.from_numpy(song.mono), Path(path).suffix[1:]
        seconds = len(mono) / song.sample_rate
        command = ["-c", THROUGH_WORKER, path, str(songs)]
        found = in_turns([(place, command) for place in places.values()], repeats=2)
        (worker, reader), *others = (least.printed for least, _ in found)
        filtered = taken(partial(resample, mono, song.sample_rate, RATE))
        alone = [taken(partial(by_ffmpeg, path))]
        alone += [taken(partial(by_libsndfile, path))] if ending in FORMATS else []
        costs[ending] = worker / seconds, reader / seconds
        rows.append(
            [ending, f"{8 * os.path.getsize(path) / seconds / 1000:.0f}",
             f"{1000 * alone[1]:.0f}" if len(alone) > 1 else "", f"{1000 * alone[0]:.0f}",
             f"{1000 * worker:.0f}", *(f"{1000 * other[0]:.0f}" for other in others),
             f"{worker / alone[-1]:.2f}", f"{worker / min(alone):.2f}", f"{1000 * reader:.0f}",
             f"{1000 * filtered:.0f}", f"{1 / worker:.1f}", f"{seconds / worker:,.0f}"]
        )  # fmt: skip
        print(rows[-1], flush=True)
    names = ["worker, CPU ms", "former build's worker, CPU ms"][: len(places)]
    columns = ["format", "kbit/s", "libsndfile alone, CPU ms", "FFmpeg alone, CPU ms", *names,
               "worker / the decoder it uses", "worker / the fastest decoder", "reader, CPU ms",
               "resampling where no GPU does it, CPU ms", "songs/s a worker",
               "x real time a worker"]  # fmt: skip
    return markdown_table(columns, rows), costs


def by_libsndfile(path: str) -> None:
    """Decode, and nothing else."""
    with soundfile.SoundFile(path) as file:
        while len(file.read(1 << 17, dtype="float32")):
            pass


def by_ffmpeg(path: str) -> None:
    """Decode, and nothing else; one thread, as libsndfile has."""
    with av.open(path) as container:
        container.streams.audio[0].codec_context.thread_count = 1
        for frame in container.decode(audio=0):
            frame.to_ndarray()


def taken(work: Callable[[], object]) -> float:
    """CPU seconds, the least of three times."""
    found = []
    for _ in range(3):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


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
