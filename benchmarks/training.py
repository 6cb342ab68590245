"""Training at the paper's size against a per-item DataLoader loop, and the grid against 24 runs.

    python benchmarks/training.py --output training.md

- `epoch, song mode`: 211,000 songs (85% train); `epoch, segment mode`: 1.2 million segments.
  Random embeddings. Some steps of each way are timed over the whole data and scaled to an epoch.
  The baseline builds a dict of tensors per item, collates them in a DataLoader, runs the plain
  modules, and reads the loss every step.
- `input pipeline`: the look-up of a batch, as a share of a step.
- `grid`: one epoch of all 24 conditions as 8 batched programs; the baseline is 24 programs of one
  model each, in the same process, without any start-up.

The floor of a figure is its matrix-product operations over the rate measured for one large product.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from clock import clock, work_clock
from floor import matmul_rate
from result_file import write_result
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from apex_reward.data.shards import EmbeddingSource
from apex_reward.model import ApexConfig, Predictor
from apex_reward.report.markdown import markdown_table
from apex_reward.scores.apex import HEADS, POPULARITY_HEADS, task_heads
from apex_reward.train.dataset import Data
from apex_reward.train.draws import epoch_batches
from apex_reward.train.losses import uncertainty
from apex_reward.train.program import Program
from apex_reward.train.settings import Condition, TrainSettings, conditions
from apex_reward.train.split import Samples, Split
from apex_reward.train.stack import Shape, shape_of
from apex_reward.train.trainer import build_program

BATCH = 512
# Training samples: 85% of the paper's songs and segments.
PAPER = {"song": int(211_000 * 0.85), "segment": int(1_200_000 * 0.85)}
COLUMNS = ("what", "ours, s", "baseline, s", "times faster", "floor, s", "ours / floor")


def step_operations(shape: Shape) -> float:
    """Matrix-product operations of one training step of one model on a batch."""
    widths = [shape.width, *shape.trunk_widths]
    trunk = [a * b for a, b in pairwise(widths)]
    widths = [shape.trunk_widths[-1], *shape.head_widths, 1]
    heads = [len(shape.heads) * a * b for a, b in pairwise(widths)]
    weights = sum(trunk) + sum(heads)
    # Forward, gradient of weights, gradient of inputs; the first layer's inputs need none.
    return BATCH * 2 * (3 * weights - trunk[0])


def random_samples(count: int) -> Samples:
    """`count` random embeddings (blocks of them repeat: only their place in memory matters)."""
    block = torch.randn(min(count, 20_000), 768)
    features = block.repeat(-(-count // len(block)), 1)[:count].numpy()
    rng = np.random.default_rng(0)
    labels = np.empty((count, len(HEADS)), np.float32)
    labels[:, : len(POPULARITY_HEADS)] = rng.uniform(0, 100, (count, 2))
    labels[:, len(POPULARITY_HEADS) :] = rng.uniform(1, 5, (count, 5))
    return Samples(features, labels, np.arange(count), np.ones(count, np.float32))


class PerItem(Dataset[dict[str, Tensor]]):
    """A dict of tensors per item, as a first trainer has it."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"embedding": torch.tensor(self.samples.features[index], dtype=torch.float32)}
        for column, head in enumerate(HEADS):
            value = self.samples.labels[index, column]
            item[head] = torch.tensor(value, dtype=torch.float32)
        return item


def per_item_steps(samples: Samples, device: torch.device) -> Iterator[float]:
    """A plain training loop; yields the loss of every step."""
    torch.manual_seed(42)
    model = Predictor().to(device).train()
    log_sigma = torch.nn.Parameter(torch.zeros(len(HEADS), device=device))
    parameters = [*model.parameters(), log_sigma]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4)
    for batch in DataLoader(PerItem(samples), batch_size=BATCH, shuffle=True):
        scores = model(batch["embedding"].to(device))
        labels = torch.stack([batch[head].to(device) for head in HEADS], dim=1)
        loss = uncertainty((scores - labels).square().mean(dim=0), log_sigma)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield loss.item()


def our_program(samples: Samples, accelerator: Accelerator) -> Program:
    few = random_samples(64)
    shape = shape_of(ApexConfig())
    return Program([Condition()], shape, samples, few, TrainSettings(), accelerator)


def our_steps(program: Program) -> Iterator[None]:
    """The trainer's own steps."""
    program.stack.train()
    program.draws.start(1, 0)
    for batch in epoch_batches(len(program.features), program.seeds, 1, BATCH, 0, 1):
        program.train_step(batch.to(program.features.device))
        yield


def seconds_per_step(steps: Iterator[object], count: int, device: torch.device) -> float:
    """Median over steps after a first one."""
    next(steps)
    times = []
    for _ in range(count):
        started = clock(device)
        next(steps)
        times.append(clock(device) - started)
    return float(np.median(times))


def epoch_rows(
    name: str, count: int, steps: int, rate: float, accelerator: Accelerator
) -> list[list[str]]:
    """Rows of one epoch at this size, and of the input pipeline in it."""
    device = accelerator.device
    samples = random_samples(count)
    program = our_program(samples, accelerator)
    batches = -(-count // BATCH)
    # In turns, so that a busy machine is busy for both.
    ours_at, theirs_at = our_steps(program), per_item_steps(samples, device)
    halves = [
        (
            seconds_per_step(ours_at, steps // 2, device),
            seconds_per_step(theirs_at, steps // 2, device),
        )
        for _ in range(2)
    ]
    ours, theirs = np.mean(halves, axis=0) * batches
    floor = batches * step_operations(program.stack.shape) / rate
    rows = [torch.randint(0, count, (1, BATCH)) for _ in range(30)]
    lookups = []
    for batch in rows:
        started = clock(device)
        program.look_up(batch.to(device))
        lookups.append(clock(device) - started)
    share = float(np.median(lookups)) * batches / ours
    return [
        line(f"epoch, {name} mode ({count:,} samples)", ours, theirs, floor),
        [f"input pipeline, {name} mode", f"{share:.1%} of a step", "-", "-", "-", "-"],
    ]


def grid_row(songs: int, rate: float, accelerator: Accelerator) -> list[str]:
    """One epoch of all conditions, batched and one by one."""
    splits = {}
    for split, count in (("train", songs), ("val", 64), ("test", 64)):
        samples = random_samples(2 * count)
        names = [f"{split}{i}" for i in range(count)]
        song = np.repeat(np.arange(count), 2)
        splits[split] = Split(samples.features, song, samples.weight, samples.labels[:count], names)
    data = Data(splits, EmbeddingSource.published(), "full")
    settings, device = TrainSettings(batch_size=BATCH), accelerator.device
    table = conditions()
    groups = list(dict.fromkeys(condition.group for condition in table))
    batched = separate = floor = 0.0
    for group in groups:
        members = [condition for condition in table if condition.group == group]
        programs = [[condition] for condition in members]
        batched += epoch_seconds([members], data, settings, accelerator, device)
        separate += epoch_seconds(programs, data, settings, accelerator, device)
        shape = shape_of(data.source.model_config(), members[0].task, members[0].shared)
        samples_of = songs * (2 if members[0].mode == "segment" else 1)
        floor += len(members) * samples_of / BATCH * step_operations(shape) / rate
        assert len(shape.heads) == len(task_heads(members[0].task))
    return line(f"grid, an epoch of 24 conditions ({songs:,} songs)", batched, separate, floor)


def epoch_seconds(
    programs: list[list[Condition]],
    data: Data,
    settings: TrainSettings,
    accelerator: Accelerator,
    device: torch.device,
) -> float:
    """Seconds of the second epoch of every program; building them is not counted."""
    total = 0.0
    for members in programs:
        program = build_program(members, data, settings, accelerator)
        program.run_epoch()
        started = clock(device)
        program.run_epoch()
        total += clock(device) - started
    return total


def line(name: str, ours: float, baseline: float, floor: float) -> list[str]:
    figures = [ours, baseline, baseline / ours, floor, ours / floor]
    return [name, *(f"{value:.3g}" for value in figures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    parser.add_argument("--part", choices=("song", "segment", "grid"), help="one part only")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    accelerator = Accelerator()
    device = accelerator.device
    rate = matmul_rate(1024, torch.float32, device, work_clock)
    sizes = {"song": 4096, "segment": 8192} if arguments.quick else PAPER
    rows = []
    for mode, size in sizes.items():
        if arguments.part in (None, mode):
            steps = 4 if arguments.quick else 30
            rows += epoch_rows(mode, size, steps, rate, accelerator)
    if arguments.part in (None, "grid"):
        rows.append(grid_row(512 if arguments.quick else 2048, rate, accelerator))
    text = f"{markdown_table(COLUMNS, rows)}\n\nfloat32; measured matrix-product rate "
    write_result("Training", f"{text}{rate / 1e9:.0f} GFLOP/s.", arguments.output)


if __name__ == "__main__":
    main()
