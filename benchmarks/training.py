"""Training at the paper's size against a per-item DataLoader loop.

    python benchmarks/training.py --output training.md

- `epoch, song mode`: 211,000 songs (85% train); `epoch, segment mode`: 1.2 million segments.
  Random embeddings. Some steps of each way are timed over the whole data and scaled to an epoch.
  The baseline builds a dict of tensors per item, collates them in a DataLoader, runs the plain
  modules, and reads the loss every step.
- `input pipeline`: the look-up of a batch, as a share of a step.

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

from apex_reward.model import ApexConfig, Predictor
from apex_reward.report.markdown import markdown_table
from apex_reward.scores.apex import HEADS, POPULARITY_HEADS
from apex_reward.train.loop import SampleLoop, epoch_batches
from apex_reward.train.losses import uncertainty
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Samples

BATCH = 512
# Training samples: 85% of the paper's songs and segments.
PAPER = {"song": int(211_000 * 0.85), "segment": int(1_200_000 * 0.85)}
COLUMNS = ("what", "ours, s", "baseline, s", "times faster", "floor, s", "ours / floor")


def step_operations(config: ApexConfig) -> float:
    """Matrix-product operations of one training step of one model on a batch."""
    widths = [config.width, *config.trunk_widths]
    trunk = [a * b for a, b in pairwise(widths)]
    widths = [config.trunk_widths[-1], *config.head_widths, 1]
    heads = [len(config.head_names) * a * b for a, b in pairwise(widths)]
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


def our_loop(samples: Samples, accelerator: Accelerator) -> SampleLoop:
    few, settings = random_samples(64), TrainSettings(paper=True)
    return SampleLoop(settings, ApexConfig(), samples, few, accelerator)


def our_steps(loop: SampleLoop) -> Iterator[None]:
    """The trainer's own steps."""
    loop.network.train()
    for batch in epoch_batches(len(loop.features), 42, 1, BATCH):
        rows = batch.to(loop.features.device)
        loop.step(loop.features[rows], loop.labels[rows])
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
    loop = our_loop(samples, accelerator)
    batches = -(-count // BATCH)
    # In turns, so that a busy machine is busy for both.
    ours_at, theirs_at = our_steps(loop), per_item_steps(samples, device)
    halves = [
        (
            seconds_per_step(ours_at, steps // 2, device),
            seconds_per_step(theirs_at, steps // 2, device),
        )
        for _ in range(2)
    ]
    ours, theirs = np.mean(halves, axis=0) * batches
    floor = batches * step_operations(ApexConfig()) / rate
    rows = [torch.randint(0, count, (BATCH,)) for _ in range(30)]
    lookups = []
    for batch in rows:
        started = clock(device)
        rows_on_device = batch.to(device)
        loop.features[rows_on_device], loop.labels[rows_on_device]
        lookups.append(clock(device) - started)
    share = float(np.median(lookups)) * batches / ours
    return [
        line(f"epoch, {name} mode ({count:,} samples)", ours, theirs, floor),
        [f"input pipeline, {name} mode", f"{share:.1%} of a step", "-", "-", "-", "-"],
    ]


def line(name: str, ours: float, baseline: float, floor: float) -> list[str]:
    figures = [ours, baseline, baseline / ours, floor, ours / floor]
    return [name, *(f"{value:.3g}" for value in figures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    parser.add_argument("--part", choices=("song", "segment"), help="one part only")
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
    text = f"{markdown_table(COLUMNS, rows)}\n\nfloat32; measured matrix-product rate "
    write_result("Training", f"{text}{rate / 1e9:.0f} GFLOP/s.", arguments.output)


if __name__ == "__main__":
    main()
