"""What judging a song costs, part by part: loading, loudness, guards, encoder, heads.

    python benchmarks/judging.py [--songs 4] [--seconds 30] [--repeats 3] [--device cuda]
                                 [--former FOLDER] [--output benchmarks/results/judging.md]

Stereo FLAC at 44.1 kHz, float32, one thread; for apex-tiny and for the published size with random
weights. Medians of the repeats, in turn; `all` is `Reward.judge` on the files with loudness and
guards.

The second table has processor milliseconds, the least of many, of guards and loudness of one song
of 30 s beside reading it. `both` is what `Reward` does: it takes the loudness from the guards where
they have measured it. `--former` names a checkout of an earlier build, which does the same in
turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from builds import builds, in_turns
from clock import clock
from result_file import write_result

from apex_reward import ApexConfig, ApexReward, Reward
from apex_reward.audio import load_audio
from apex_reward.audio.loudness import integrated_loudness
from apex_reward.audio.resample import resample
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.guards import Guards

RATE, OWN = 44_100, 24_000
GUARDS = """
import sys, time, torch
from apex_reward.audio import load_audio
from apex_reward.audio.loudness import integrated_loudness
from apex_reward.rewards.guards import Guards

torch.set_num_threads(1)
torch.set_grad_enabled(False)
guards, waveform = Guards(), load_audio(sys.argv[1])
mono, rate = torch.from_numpy(waveform.samples).mean(0), waveform.sample_rate

def loudness():
    return integrated_loudness(mono[None], rate)

def both():
    measured = guards.measure(mono, rate)
    known = getattr(guards, "whole_loudness", None)
    return known(measured, len(mono), rate) if known else loudness()

def least(work):
    times = []
    for _ in range(15):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return 1000 * min(times)

works = lambda: load_audio(sys.argv[1]), loudness, lambda: guards.measure(mono, rate), both
print(len(guards.guards), *(f"{least(work):.3f}" for work in works))
"""


def parts(reward: Reward, model: ApexReward, paths: list[str]) -> dict[str, Callable[[], object]]:
    """Each part of the work by its name."""
    device = model.device
    mono = [torch.from_numpy(load_audio(path).samples).mean(0).to(device) for path in paths]
    songs = [resample(song, RATE, model.config.sample_rate)[None] for song in mono]
    guards = Guards()
    with torch.no_grad():
        embedding = model.embed(songs[0], OWN)
    return {
        "read and decode": lambda: [load_audio(path) for path in paths],
        "resample": lambda: [resample(song, RATE, OWN) for song in mono],
        "loudness": lambda: [integrated_loudness(song[None], RATE) for song in mono],
        "guards": lambda: [guards.measure(song, RATE) for song in mono],
        "encoder": lambda: [model.embed(song, OWN) for song in songs],
        "heads": lambda: [model.predictor(embedding) for _ in songs],
        "all": lambda: reward.judge(paths),
    }


def beside_former(folder: str, former: Path | None) -> str:
    """The table of guards and loudness."""
    rows = []
    for rate in (44_100, 48_000):
        path = f"{folder}/{rate}.flac"
        samples = 0.1 * np.random.default_rng(0).standard_normal((30 * rate, 2))
        soundfile.write(path, samples, rate)
        places = builds(former)
        found = in_turns([(place, ["-c", GUARDS, path]) for place in places.values()], repeats=2)
        figures = [least.printed for least, _ in found]
        read = min(reading for _, reading, *_ in figures)
        for name, (count, _, loudness, guards, both) in zip(places, figures, strict=True):
            rows.append(
                [f"{rate:,} Hz", name, f"{count:.0f}", f"{read:.1f}", f"{loudness:.1f}",
                 f"{guards:.1f}", f"{both:.1f}", f"{both / read:.2f}",
                 f"{both / figures[-1][-1]:.2f}"]
            )  # fmt: skip
    columns = ["rate", "build", "guards there", "read FLAC", "loudness", "guards", "both",
               "both / read", "both / former"]  # fmt: skip
    return markdown_table(columns, rows)


def main() -> None:
    """Measure both sizes, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--songs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--former", type=Path, help="checkout of an earlier build")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    rng, rows = np.random.default_rng(0), []
    models = {
        "apex-tiny": ApexReward.from_pretrained("apex-tiny").to(options.device),
        "published size": ApexReward(ApexConfig()).to(options.device),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{n}.flac" for n in range(options.songs)]
        for path in paths:
            samples = 0.1 * rng.standard_normal((round(options.seconds * RATE), 2))
            soundfile.write(path, samples, RATE)
        compared = beside_former(folder, options.former)
        for name, model in models.items():
            reward = Reward(model, mix="aesthetics", loudness=-18.0, guards="penalty")
            ways = parts(reward, model, paths)
            times: dict[str, list[float]] = {part: [] for part in ways}
            for turn in range(options.repeats + 1):
                for part, way in ways.items():
                    started = clock(options.device)
                    way()
                    if turn:  # the first one warms up
                        times[part].append(clock(options.device) - started)
            found = {part: statistics.median(values) for part, values in times.items()}
            rows += [
                [name, part, f"{1000 * spent / options.songs:.0f}", f"{spent / found['all']:.1%}"]
                for part, spent in found.items()
            ]
    columns = ["model", "part", "ms a song", "share of all"]
    text = f"{options.songs} songs of {options.seconds:g} s, on {options.device}."
    parted = markdown_table(columns, rows)
    beside = "Guards and loudness of one song of 30 s, processor ms:"
    write_result("Judging", f"{text}\n\n{parted}\n\n{beside}\n\n{compared}", options.output)


if __name__ == "__main__":
    main()
