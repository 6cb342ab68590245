"""What a student of the default size costs beside a teacher of the published size.

    python benchmarks/student.py --output benchmarks/results/student.md

One process, one thread, random weights (the arithmetic is the same for any weights), one segment of
30 s. Seconds are processor time, the least of `--repeats` runs that take turns. `operations` counts
those of products and convolutions (torch's counter; the Fourier transform is not among them).

- `segment`: the teacher's encoder over the student's, without a graph.
- `gradient`: value and waveform gradient of the student over one of its forward passes.
- `memory`: peak of that process above the loaded student, MiB.
- `eight members`: a student with eight members over one with one.

Then apex-tiny-fast beside its teacher apex-tiny: rank correlation (mean over the heads) on 32
unseen synthetic songs and, with `--audio FOLDER`, on windows of 10 s of real recordings, each with
damaged versions; and the cascade's choice of the best of 64 such songs, from 2,000 draws.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from result_file import write_result
from torch.utils.flop_counter import FlopCounterMode

from apex_reward import RewardModel, load_reward_model
from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.demo import DAMAGES, damage, make_song
from apex_reward.metrics import spearman
from apex_reward.model import ApexConfig, ApexReward
from apex_reward.model.config import STUDENT
from apex_reward.model.encoders.student import StudentConfig
from apex_reward.report.markdown import markdown_table
from apex_reward.train.distill import SIZES

RATE, SECONDS = 24_000, 30


def student(size: str, segment: float = SECONDS, members: int = 1) -> ApexReward:
    """A student of a size, with random weights and segments of so many seconds."""
    inner, depth, hidden = SIZES[size]
    sizes = StudentConfig(768, inner, depth, intermediate_size=2 * inner)
    config = ApexConfig(
        encoder={"kind": STUDENT, **asdict(sizes)}, encoder_name=None, layers=[depth],
        head_widths=[hidden], members=members, segment_seconds=segment,
    )  # fmt: skip
    return ApexReward(config)


def least(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least processor time of each, in turns, after one run to warm up."""
    found = dict.fromkeys(works, float("inf"))
    for turn in range(repeats + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if turn:
                found[name] = min(found[name], time.process_time() - started)
    return found


def operations(model: ApexReward, song: torch.Tensor) -> int:
    """Floating-point operations of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(song, RATE)
    return counter.get_total_flops()


def versions(songs: Sequence[np.ndarray], count: int) -> list[torch.Tensor]:
    """Every song (1, T) and `count` damaged versions of it."""
    rng, waves = np.random.default_rng(0), []
    for seed, song in enumerate(songs):
        names = rng.choice(DAMAGES, count, replace=False)
        worse = [damage(song, str(name), int(rng.integers(1, 4)), seed) for name in names]
        waves += [torch.from_numpy(wave)[None] for wave in (song, *worse)]
    return waves


def real_windows(folder: Path) -> list[np.ndarray]:
    """Windows of 10 s at 24 kHz, one in 20 s, of all recordings of a folder."""
    windows = []
    for file in sorted(folder.iterdir()):
        audio = load_audio(file)
        mono = torch.from_numpy(audio.samples.mean(axis=0))
        wave = resample(mono, audio.sample_rate, RATE).numpy()
        starts = range(0, len(wave) - 10 * RATE, 20 * RATE)
        windows += [wave[start : start + 10 * RATE] for start in starts]
    return windows


@torch.no_grad()
def timed_scores(model: RewardModel, waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Scores (N, H), and processor seconds per song."""
    started = time.process_time()
    scores = torch.cat([model(wave, RATE).stack() for wave in waves])
    return scores, (time.process_time() - started) / len(waves)


def fast_rows(audio: Path | None) -> list[tuple[str, ...]]:
    """apex-tiny-fast beside apex-tiny."""
    models = [load_reward_model(name) for name in ("apex-tiny-fast", "apex-tiny")]
    rng, rows = np.random.default_rng(1), []
    made = [make_song(2**46 + n, float(rng.uniform(4, 14))) for n in range(32)]
    groups = {"synthetic": (versions(made, 5), "at least 0.9")}
    if audio is not None:
        groups["real"] = (versions(real_windows(audio), 8), "at least 0.8")
    for name, (waves, target) in groups.items():
        (ours, took), (theirs, teacher) = (timed_scores(model, waves) for model in models)
        ranks = [spearman(ours[:, head], theirs[:, head]) for head in range(ours.shape[1])]
        lowest = f"lowest head {min(ranks):.3f}"
        rows.append((f"Spearman, {name}", f"{len(waves)} songs", lowest,
                     f"{np.mean(ranks):.3f}", target))  # fmt: skip
        if name == "synthetic":
            student, best = ours[:, 2:].mean(dim=1).numpy(), theirs[:, 2:].mean(dim=1).numpy()
            drawn = np.random.default_rng(2).integers(0, len(waves), (2000, 64))
            kept = np.take_along_axis(drawn, (-student[drawn]).argsort(axis=1)[:, :8], axis=1)
            gain = (best[kept].max(axis=1) - best.mean()).mean()
            whole = (best[drawn].max(axis=1) - best.mean()).mean()
            cascade = ("cascade of 64 to 8: gain", f"{gain:.3f}", f"{whole:.3f}",
                       f"{gain / whole:.3f}", "at least 0.95")  # fmt: skip
            both, alone = 64 * took + 8 * teacher, 64 * teacher
            price = ("cascade of 64 to 8: time", f"{both:.2f} s", f"{alone:.2f} s",
                     f"{both / alone:.3f}", "at most 0.2")  # fmt: skip
    return [*rows, cascade, price]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--audio", type=Path, help="folder of real recordings")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    song = 0.1 * torch.randn(1, RATE * SECONDS)
    small, eight = student(options.size), student(options.size, members=8)

    def gradient() -> None:
        leaf = song.clone().requires_grad_()
        small(leaf, RATE).stack().sum().backward()

    def forward(model: ApexReward) -> Callable[[], object]:
        return lambda: torch.no_grad()(model)(song, RATE)

    forward(small)()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradient()
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    teacher = ApexReward(ApexConfig())
    names = {"student": forward(small), "gradient": gradient, "eight": forward(eight)}
    took = least({**names, "teacher": forward(teacher)}, options.repeats)
    counts = operations(teacher, song), operations(small, song)
    rows = [
        ("segment", f"{took['teacher']:.3f} s", f"{took['student']:.4f} s",
         f"{took['teacher'] / took['student']:.0f}", "at least 60"),
        ("operations", f"{counts[0]:.3g}", f"{counts[1]:.3g}",
         f"{counts[0] / counts[1]:.0f}", "at least 150"),
        ("gradient", f"{took['gradient']:.4f} s", f"{took['student']:.4f} s",
         f"{took['gradient'] / took['student']:.2f}", "at most 3"),
        ("eight members", f"{took['eight']:.4f} s", f"{took['student']:.4f} s",
         f"{took['eight'] / took['student']:.2f}", "at most 1.2"),
        ("memory", f"{memory:.0f} MiB", "", "", "under 150 MB"),
    ]  # fmt: skip
    rows += fast_rows(options.audio)
    columns = ("what", "this", "beside", "ratio", "target")
    write_result(
        f"A student of the size {options.size}", markdown_table(columns, rows), options.output
    )


if __name__ == "__main__":
    main()
