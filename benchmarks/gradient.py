"""Peak memory and time of value-and-gradient by song length: bounded against plain.

    python benchmarks/gradient.py [--device cuda] [--quick] [--output gradient.md]

Bounded is `model.reward(...)` with one segment per encoder batch, whose backward pass recomputes
one batch at a time. Plain is the same modules with every segment's graph kept, the baseline; it is
left out beyond `--plain-seconds`, where it would not fit. Each figure is taken in a process of
its own on a CPU (peak resident memory above the loaded model), with random weights of the
published size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import time
from pathlib import Path

import torch

from apex_reward import ApexConfig, ApexReward
from apex_reward.audio.segment import cut_segments

RATE = 24_000
GIB = 2**30


def plain_reward(model: ApexReward, waveform: torch.Tensor) -> torch.Tensor:
    """The aesthetics reward with the graph of every segment kept."""
    cut = cut_segments(waveform, [waveform.shape[1]], model.config.segment_samples, RATE)
    embedding = model.pooling(cut.song_means(model.encoder(cut.samples), songs=1))
    return ((model.predictor(embedding)[:, 2:] - 1) / 4).mean(dim=1)


def measure(way: str, seconds: float, device: str) -> tuple[float, float, float]:
    """Peak bytes above the loaded model, seconds taken, and the gradient's norm."""
    torch.manual_seed(0)
    model = ApexReward(ApexConfig()).to(device)
    waveform = (torch.randn(1, int(seconds * RATE), device=device) * 0.1).requires_grad_()
    before = _memory(device)
    started = time.perf_counter()
    if way == "plain":
        reward = plain_reward(model, waveform)
    else:
        reward = model.reward(waveform, RATE, mix="aesthetics", batch_segments=1)
    reward.sum().backward()
    if device != "cpu":
        torch.cuda.synchronize()
    taken = time.perf_counter() - started
    return _memory(device) - before, taken, float(waveform.grad.norm())


def _memory(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _measure_apart(*arguments: object) -> tuple[float, float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="30 s and 60 s only")
    parser.add_argument("--plain-seconds", type=float, default=90.0, help="longest plain run")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    lengths = [30, 60] if options.quick else [30, 60, 90, 180, 300, 600]
    where = torch.cuda.get_device_name() if options.device != "cpu" else _cpu_name()
    lines = [
        f"Machine: {where}; torch {torch.__version__}; float32; published model size.",
        "",
        "| song | bounded: peak | against 30 s | bounded: time | plain: peak | plain: time "
        "| memory, plain / bounded | gradients differ by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    first = 0.0
    for seconds in lengths:
        peak, taken, norm = _measure_apart("bounded", seconds, options.device)
        first = first or peak
        cells = [f"{seconds} s", f"{peak / GIB:.2f} GiB", f"{peak / first:.2f}x", f"{taken:.1f} s"]
        if seconds <= options.plain_seconds:
            plain_peak, plain_taken, plain_norm = _measure_apart("plain", seconds, options.device)
            cells += [f"{plain_peak / GIB:.2f} GiB", f"{plain_taken:.1f} s"]
            cells += [f"{plain_peak / peak:.2f}x", f"{abs(norm - plain_norm) / plain_norm:.1e}"]
        else:
            cells += ["-"] * 4
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def _cpu_name() -> str:
    return f"{torch.get_num_threads()}-thread CPU ({platform.machine()})"


if __name__ == "__main__":
    main()
