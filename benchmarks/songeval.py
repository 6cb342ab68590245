"""SongEval at full size, float32, one thread: its published code, in its own process, and ours.

    python benchmarks/songeval.py --published PYTHON --songeval FOLDER
                                  [--seconds 20 60 --repeats 3] [--output FILE]

PYTHON is that of an environment with muq 0.1.0 and transformers 4.46.3 (and this torch); FOLDER is
a clone of SongEval's repository. Random weights, songs of noise. The two run in turn; processor
time, the least of the repeats.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from clock import work_clock
from floor import matmul_rate
from result_file import write_result

from apex_reward.model.encoders import muq
from apex_reward.model.encoders.products import FastProducts, conv3x3, linear, transformed
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.foreign.songeval import SongEval

RATE, CHANNELS, WIDTH, SIZE = 24_000, 512, 1024, 1536
Stage = tuple[str, float, float]


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = SongEval()
    rows = compared(model, args)
    heads = ["song", "published, s", "ours, s", "ratio", "published, GiB", "ours, GiB"]
    shortest = min(args.seconds)
    text = (
        "One song of noise, random weights of the published size, float32; processor seconds. "
        "Memory is the peak of the process so far, weights and libraries included.\n\n"
        f"{markdown_table(heads, rows)}\n\n{profile(model, shortest, float(rows[0][1]))}"
    )
    write_result("SongEval at full size", text, args.output)


def compared(model: SongEval, args: argparse.Namespace) -> list[list[str]]:
    """A row per length: both ways' least seconds, their ratio, their memory."""
    command = [args.published, str(Path(__file__).with_name("songeval_published.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    rows = []
    with subprocess.Popen(
        [*command, str(args.songeval)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as other:
        assert other.stdin
        assert other.stdout
        while other.stdout.readline().strip() != "ready":
            if other.poll() is not None:
                raise SystemExit("the published code does not start")
        for seconds in sorted(args.seconds):
            theirs, ours = [], []
            for _ in range(args.repeats):
                print(seconds, file=other.stdin, flush=True)
                theirs.append([float(value) for value in other.stdout.readline().split()])
                ours.append(run(model, seconds))
            least, peak = min(spent for spent, _ in theirs), theirs[-1][1]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            figures = least, min(ours), least / min(ours), peak, memory
            rows.append([f"{seconds:g} s", *(f"{figure:.2f}" for figure in figures)])
            print(rows[-1], flush=True)
        other.stdin.close()
    return rows


def run(model: SongEval, seconds: float) -> float:
    """Processor seconds of one song."""
    samples = 0.1 * torch.randn(1, round(RATE * seconds))
    started = time.process_time()
    model(samples, RATE)
    return time.process_time() - started


def profile(model: SongEval, seconds: float, published: float) -> str:
    """Where our time goes, at which rate, and how far the rate of large products would bring it."""
    with FastProducts():
        stages = list(stages_of(model, seconds))
    total = sum(spent for _, spent, _ in stages)
    rows = [
        [name, f"{spent:.2f}", f"{spent / total:.0%}", f"{work:.0f}", f"{work / spent:.0f}"]
        for name, spent, work in stages
    ]
    heads = ["stage", "s", "share", "GFLOP", "GFLOP/s"]
    rates = [matmul_rate(SIZE, torch.float32, "cpu", work_clock)]
    square = torch.randn(2, SIZE, SIZE)
    rates.append(2 * SIZE**3 / least(lambda: linear(square[0], square[1]), 15))
    work = sum(work for _, _, work in stages)
    floor = work / (max(rates) / 1e9)
    return (
        f"Where our time goes, {seconds:g} s of audio:\n\n{markdown_table(heads, rows)}\n\n"
        f"A large product runs at {rates[0] / 1e9:.0f} GFLOP/s by torch's own call and at "
        f"{rates[1] / 1e9:.0f} by the one that the encoder uses. All of our work at the higher of "
        f"the two rates would take {floor:.2f} s, {published / floor:.1f} times less than the "
        "published code takes."
    )


def stages_of(model: SongEval, seconds: float) -> list[Stage]:
    """Name, seconds and GFLOP of each part; those of Winograd's are what it computes."""
    encoder, samples = model.encoder, 0.1 * torch.randn(1, round(RATE * seconds))
    mel = muq.log_mel(samples, encoder.config.mean, encoder.config.std)
    grids = encoder.conv(mel)
    hidden = encoder.conformer(grids)
    frames, pieces = grids.shape[1], -(-grids.shape[1] // muq.PIECE_FRAMES)
    # The first block leaves a grid of 64 x 2 per frame, the second one of 32 x 1.
    seen = frames + 2 * muq.HALO_FRAMES * (pieces - 1)
    square = torch.randn(CHANNELS, CHANNELS, 3, 3) / 70
    bias, products = torch.zeros(CHANNELS), transformed(square)
    fine = torch.randn(1, 2 * seen, 64, CHANNELS).permute(0, 3, 2, 1)
    small = torch.randn(1, seen, 32, CHANNELS).permute(0, 3, 2, 1)
    fine, small = (x.contiguous(memory_format=torch.channels_last) for x in (fine, small))
    direct = 2 * 9 * CHANNELS**2 * 32 * seen / 1e9
    winograd = 5 * direct / 4
    attended = 4 * WIDTH * frames / 1e9
    per_layer = 2 * (16 + 4 + 3) * WIDTH**2 / 1e9 + attended
    parts = [
        ("log-mel", lambda: muq.log_mel(samples, 0.0, 1.0), 0.0),
        (
            "3x3 convolutions, stride 1 (Winograd)",
            lambda: [conv3x3(x, square, bias, products) for x in (fine, small)],
            winograd,
        ),
        (
            "3x3 convolutions, stride 2",
            lambda: [F.conv2d(fine, square, bias, 2, 1) for _ in range(2)],
            2 * direct,
        ),
    ]
    spent = [(name, least(way, 2), work) for name, way, work in parts]
    whole = least(lambda: encoder.conv(mel), 2) - sum(seconds for _, seconds, _ in spent[1:])
    later = [
        ("6 conformer layers", lambda: encoder.conformer(grids), 6 * frames * per_layer),
        ("head", lambda: model.head(hidden), frames * (2 * 24 * WIDTH**2 / 1e9 + 4 * attended)),
    ]
    projection = 2 * frames * 32 * CHANNELS * WIDTH / 1e9
    return [
        *spent,
        ("rest of the subsampling", whole, projection),
        *((name, least(way, 2), work) for name, way, work in later),
    ]


def least(way: Callable[[], object], repeats: int) -> float:
    """The least processor seconds of several runs."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        way()
        found.append(time.process_time() - started)
    return min(found)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--published", required=True, help="the published environment's python")
    parser.add_argument("--songeval", type=Path, required=True, help="a clone of SongEval")
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0, 60.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
