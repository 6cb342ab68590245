"""Peak memory and time of a value and its gradient, by song length and gradient setting.

    python benchmarks/gradient.py [--device cuda] [--cases 30:plain,30:kept,600:frugal]
                                  [--output benchmarks/results/gradient.md]

One segment per encoder batch, random weights of the published size. `plain` keeps every segment's
graph, the baseline; `kept` is the default (the graph of one batch is kept, the others are
recomputed); `recomputed` keeps none; `frugal` recomputes within a segment too. Each case is a
process of its own; on a CPU, memory is its peak resident set above the loaded model. Songs of up to
a minute run twice, and the faster run counts: the first one asks the system for its memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from pathlib import Path

import torch
from result_file import write_result

from apex_reward import ApexConfig, ApexReward
from apex_reward.model.packing import gradient_settings
from apex_reward.report.markdown import markdown_table

RATE = 24_000
GIB = 2**30
WAYS = {
    "plain": {"graph_segments": 10**6},
    "kept": {},
    "recomputed": {"graph_segments": 0},
    "frugal": {"frugal": True},
}
CASES = "30:plain,30:kept,30:recomputed,30:frugal,60:plain,60:kept,180:kept,180:frugal,600:frugal"


def measure(way: str, seconds: float, device: str) -> tuple[float, float, float, float]:
    """Bytes above the loaded model, seconds of the forward pass alone and of all, the norm."""
    torch.manual_seed(0)
    model = ApexReward(ApexConfig()).to(device)
    waveform = (torch.randn(1, int(seconds * RATE), device=device) * 0.1).requires_grad_()
    before, forward, taken = _memory(device), float("inf"), float("inf")
    for _ in range(2 if seconds <= 60 else 1):
        started = time.perf_counter()
        with torch.no_grad():
            float(model.reward(waveform, RATE, mix="aesthetics", batch_segments=1))
        forward = min(forward, time.perf_counter() - started)
    for _ in range(2 if seconds <= 60 else 1):
        waveform.grad = None
        started = time.perf_counter()
        with gradient_settings(**WAYS[way]):
            model.reward(waveform, RATE, mix="aesthetics", batch_segments=1).sum().backward()
        norm = float(waveform.grad.norm())  # waits for a GPU too
        taken = min(taken, time.perf_counter() - started)
    return _memory(device) - before, forward, taken, norm


def _memory(device: str) -> float:
    """Bytes at the peak so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", default=CASES, help="seconds:way, comma-separated")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    rows, norms, first = [], {}, {}
    for case in options.cases.split(","):
        seconds, way = case.split(":")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (way, float(seconds), options.device))
        peak, forward, taken, norm = found
        norms.setdefault(seconds, norm)
        first.setdefault(way, peak)
        rows.append(
            [f"{seconds} s", way, f"{peak / GIB:.2f} GiB", f"{peak / first[way]:.2f}x",
             f"{taken:.0f} s", f"{taken / forward:.2f}", f"{abs(norm / norms[seconds] - 1):.0e}"]
        )  # fmt: skip
        print(rows[-1], flush=True)
    columns = ["song", "way", "peak above the model", "against its first row", "value and gradient",
               "forward passes", "norm differs by"]  # fmt: skip
    text = f"{options.device}, float32, published size, one segment per encoder batch."
    write_result("Gradients", f"{text}\n\n{markdown_table(columns, rows)}", options.output)


if __name__ == "__main__":
    main()
