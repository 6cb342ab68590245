"""What a student of the default size costs beside a teacher of the published size.

    python benchmarks/student.py --output benchmarks/results/student.md

One process, one thread, random weights (the arithmetic is the same for any weights), one segment of
30 s. Seconds are processor time, the least of `--repeats` runs that take turns. `operations` counts
those of products and convolutions (torch's counter; the Fourier transform is not among them).

- `segment`: the teacher's encoder over the student's, without a graph.
- `gradient`: value and waveform gradient of the student over one of its forward passes.
- `memory`: peak of that process above the loaded student, MiB.
- `eight members`: a student with eight members over one with one.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from result_file import write_result
from torch.utils.flop_counter import FlopCounterMode

from apex_reward.model import ApexConfig, ApexReward
from apex_reward.model.config import STUDENT
from apex_reward.model.encoders.student import StudentConfig
from apex_reward.report.markdown import markdown_table
from apex_reward.train.distill import SIZES

RATE, SECONDS = 24_000, 30


def student(size: str, members: int = 1) -> ApexReward:
    """A student of a size, with random weights."""
    inner, depth, hidden = SIZES[size]
    sizes = StudentConfig(768, inner, depth, intermediate_size=2 * inner)
    config = ApexConfig(
        encoder={"kind": STUDENT, **asdict(sizes)}, encoder_name=None, layers=[depth],
        head_widths=[hidden], members=members,
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--repeats", type=int, default=5)
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
    columns = ("what", "this", "beside", "ratio", "target")
    write_result(
        f"A student of the size {options.size}", markdown_table(columns, rows), options.output
    )


if __name__ == "__main__":
    main()
