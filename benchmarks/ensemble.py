"""What an ensemble of eight costs beside one predictor: its training alone, and the whole command.

    python benchmarks/ensemble.py --output benchmarks/results/ensemble.md

- `an epoch`: eight members as one program, each on its own bootstrap draw, beside one predictor on
  all songs; the trainer's own epochs, without any start-up. The floor is the draws' share of the
  matrix products, at the rate measured for one large product.
- `the command`: `apex-reward train --members 8` beside `apex-reward train` on the same shards, with
  their default 50 epochs: start, reading, training, the test split, report and plots.

Embeddings carry a known signal (as in losses.py). Processor time, in turns.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator
from clock import work_clock
from floor import matmul_rate
from losses import make_data
from result_file import write_result
from training import BATCH, random_samples, step_operations

from apex_reward.data.shards import SPLITS, SongRows, write_shard
from apex_reward.model import ApexConfig
from apex_reward.model.files import EMBEDDED_FOLDER
from apex_reward.report.markdown import markdown_table
from apex_reward.scores.apex import HEADS
from apex_reward.train.dataset import Data
from apex_reward.train.program import Program
from apex_reward.train.settings import Condition, TrainSettings, ensemble
from apex_reward.train.stack import shape_of

MEMBERS, EPOCH_SONGS = 8, 8192
DISTINCT = 1 - 1 / math.e  # share of the songs in a bootstrap draw
COLUMNS = (
    "predictor",
    "what",
    "songs",
    "one, s",
    "eight, s",
    "eight / one",
    "floor of eight / one",
)


def epoch_row(
    size: str, config: ApexConfig, songs: int, rate: float, accelerator: Accelerator
) -> list[str]:
    """One epoch of eight members as one program, and of one."""
    samples, val = random_samples(songs), random_samples(64)
    for part in (samples, val):
        part.features = np.ascontiguousarray(part.features[:, : config.width])
    shape, device = shape_of(config), accelerator.device

    def seconds(members: int) -> float:
        settings = TrainSettings(batch_size=BATCH, bootstrap=members > 1)
        table = ensemble(Condition(), members)
        program = Program(table, shape, samples, val, settings, accelerator)
        program.run_epoch()
        started = work_clock(device)
        program.run_epoch()
        return work_clock(device) - started

    pairs = [(seconds(1), seconds(MEMBERS)) for _ in range(3)]
    one, eight = np.median(pairs, axis=0)
    ratio = float(np.median([second / first for first, second in pairs]))
    floor = MEMBERS * DISTINCT * songs / BATCH * step_operations(shape) / rate
    return line(size, "an epoch", songs, float(one), float(eight), ratio, f"{floor / one:.2f}")


def command_row(size: str, config: ApexConfig, songs: int) -> list[str]:
    """The command with and without members, each a process of its own."""
    data, _ = make_data(songs, config)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(data, folder / "shards")
        one, eight = (
            command_seconds(folder, str(members), "--members", str(members))
            for members in (1, MEMBERS)
        )
    return line(size, "the command", songs, one, eight, eight / one, "")


def write_shards(data: Data, folder: Path) -> None:
    """Every split as a shard; a song is one segment."""
    layers = len(data.source.pooling_weight)
    for split in SPLITS:
        part = data[split].samples("song", "full")
        songs = [
            SongRows(f"{split}{n}", dict(zip(HEADS, labels, strict=True)),
                     np.repeat(row[None, None], layers, axis=1), row[None], [1.0])
            for n, (row, labels) in enumerate(
                zip(part.features, part.labels.tolist(), strict=True)
            )
        ]  # fmt: skip
        (folder / split).mkdir(parents=True)
        write_shard(folder / split / "00000.parquet", songs, data.source)


def command_seconds(folder: Path, run: str, *options: str) -> float:
    """Processor seconds of one `apex-reward train`."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "apex_reward", "train", "--data", str(folder / "shards"),
               "--output", str(folder / run), *options]  # fmt: skip
    before = children_seconds()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": threads, "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    return children_seconds() - before


def children_seconds() -> float:
    """Processor seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(
    size: str, what: str, songs: int, one: float, eight: float, ratio: float, floor: str
) -> list[str]:
    return [size, what, f"{songs:,}", f"{one:.3g}", f"{eight:.3g}", f"{ratio:.2f}", floor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    accelerator = Accelerator(cpu=True)
    rate = matmul_rate(1024, torch.float32, accelerator.device, work_clock)
    tiny = ApexConfig.from_pretrained(EMBEDDED_FOLDER)
    rows = []
    for size, config in (("the paper's size", ApexConfig()), ("apex-tiny's size", tiny)):
        songs = 1024 if arguments.quick else EPOCH_SONGS
        rows.append(epoch_row(size, config, songs, rate, accelerator))
        for songs in (512,) if arguments.quick else (1024, 4096, 16384):
            rows.append(command_row(size, config, songs))
            print(rows[-1], flush=True)
    text = f"{markdown_table(COLUMNS, rows)}\n\nfloat32; measured matrix-product rate "
    write_result("Ensembles", f"{text}{rate / 1e9:.0f} GFLOP/s.", arguments.output)


if __name__ == "__main__":
    main()
