"""Ways to make an ensemble of eight, and what it costs beside one predictor.

    python benchmarks/ensemble.py --output benchmarks/results/ensemble.md

Songs with a known signal (500, 1,500 and 10,000 for training, 2,000 for testing), a narrow network
(96 wide, trunk 96-48, heads 24-12), 50 epochs at two learning rates. Eight members each:

- `all songs`: every member trains on all songs in each epoch; the members differ in their seed.
- `package`: as `apex-reward train --members 8`: in each epoch a member trains on a share of the
  songs, `MEMBER_SHARE`, drawn anew, and on at least `MEMBER_LEAST` (all, where there are fewer).
- `bootstrap`: every member trains on its own draw of the songs with replacement.
- `half the features`: every member reads its own random half of the embedding, and all songs.

`error / one`: mean squared error of the mean over the members, over that of one predictor on all
songs (mean over eight seeds), averaged over the heads; in brackets the head that is worst.
`spread`: rank correlation of spread and absolute error over the test songs, mean over the heads.
`covered`: share of test songs within two spreads, scaled on the validation songs; 0.95 is wanted.
`work`: processor time of the eight over that of one.

An epoch and the command are measured at the published size (768 wide): processor time of an epoch
of eight over an epoch of one, in turns, the least of four; and of `apex-reward train --members 8`
over `apex-reward train`, start, reading, test split, report and plots included.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator
from losses import make_data
from result_file import write_result

from apex_reward.data.shards import SPLITS, EmbeddingSource, SongRows, write_shard
from apex_reward.model import ApexConfig
from apex_reward.model.predictor import LayerPooling
from apex_reward.report.markdown import markdown_table
from apex_reward.scores.apex import HEADS, POPULARITY_HEADS
from apex_reward.train.loop import SampleLoop, predict
from apex_reward.train.report import fit_spread_scale, spread_measures
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data, Samples, Split

MEMBERS, LATENT = 8, 16
NARROW = ApexConfig(
    encoder={"hidden_size": 96, "num_attention_heads": 4},
    trunk_widths=(96, 48),
    head_widths=(24, 12),
)
# Correlation of each label with its signal.
RHO = dict(zip(HEADS, (0.6, 0.6, 0.85, 0.85, 0.85, 0.6, 0.4), strict=True))
WAYS = ("all songs", "package", "bootstrap", "half the features")
COLUMNS = ("songs", "lr", "way", "error / one", "spread", "covered", "work")


def known_data(songs: int, seed: int) -> Data:
    """Embeddings of a 16-dimensional hidden vector; every second head reads a product too."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((LATENT, NARROW.width)) / math.sqrt(LATENT)
    directions = rng.standard_normal((len(HEADS), 3, LATENT)) / math.sqrt(LATENT)
    splits = {}
    for split, count in (("train", songs), ("val", max(40, songs // 17)), ("test", 2000)):
        hidden = rng.standard_normal((count, LATENT))
        noise = 0.5 * rng.standard_normal((count, NARROW.width))
        labels = np.empty((count, len(HEADS)), np.float32)
        for column, head in enumerate(HEADS):
            a, b, c = (hidden @ directions[column].T).T
            signal = (a + 0.4 * b * c) / math.sqrt(1.16) if column % 2 else a
            rest = math.sqrt(1 - RHO[head] ** 2) * rng.standard_normal(count)
            latent = RHO[head] * signal + rest
            rank = (np.argsort(np.argsort(latent)) + 1) / count
            popular = head in POPULARITY_HEADS
            labels[:, column] = 100 * rank**3.106 if popular else np.clip(3 + 0.65 * latent, 1, 5)
        names = [f"{split}{i}" for i in range(count)]
        ones = np.ones(count, np.float32)
        features = (hidden @ mixing + noise).astype(np.float32)
        splits[split] = Split(features, np.arange(count), ones, labels, names)
    return Data(splits, EmbeddingSource.of(NARROW, LayerPooling()), "full")


def changed(samples: Samples, way: str, seed: int, training: bool) -> Samples:
    """What a member of a way reads."""
    rng = np.random.default_rng(seed)
    features, labels = samples.features, samples.labels
    if way == "half the features":
        features = features.copy()
        features[:, rng.permutation(features.shape[1])[: features.shape[1] // 2]] = 0
    if way == "bootstrap" and training:
        rows = rng.integers(0, len(labels), len(labels))
        features, labels = features[rows], labels[rows]
    return Samples(features, labels, samples.song, samples.weight)


def trained(data: Data, way: str, lr: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Test and validation predictions (N, M, H) of eight members, and their processor time."""
    parts = {split: data[split].samples("song", "full") for split in SPLITS}
    test, val, started = [], [], time.process_time()
    members = MEMBERS if way == "package" else 1
    for seed in range(42, 42 + MEMBERS):
        settings = TrainSettings(lr=lr, seed=seed, members=members)
        own = {s: changed(part, way, seed, s == "train") for s, part in parts.items()}
        loop = SampleLoop(settings, NARROW, own["train"], own["val"], Accelerator(cpu=True))
        while not loop.finished:
            loop.run_epoch()
        with loop.at_best() as network:
            for split, found in (("test", test), ("val", val)):
                features = torch.as_tensor(own[split].features)
                found.append(predict(network, features).double().numpy())
    return np.stack(test, 1), np.stack(val, 1), time.process_time() - started


def rows_of(songs: int, lr: float, seed: int) -> list[list[str]]:
    """A row per way."""
    data, rows, one = known_data(songs, seed), [], np.ones(len(HEADS))
    labels = data["test"].labels.astype(np.float64)
    work = 1.0
    for way in WAYS:
        test, val, seconds = trained(data, way, lr)
        if way == "all songs":  # its members are the single predictors
            one = ((test - labels[:, None]) ** 2).mean(axis=(0, 1))
            work = seconds / MEMBERS
        ratio = ((test.mean(axis=1) - labels) ** 2).mean(axis=0) / one
        scale = fit_spread_scale(val, data["val"].labels)
        spread = spread_measures(test, labels, HEADS, scale).values()
        mean = {key: np.mean([row[key] for row in spread]) for key in ("spearman", "coverage")}
        error = f"{ratio.mean():.3f} ({ratio.max():.3f})"
        cells = [f"{mean['spearman']:.3f}", f"{mean['coverage']:.3f}", f"{seconds / work:.1f}"]
        rows.append([f"{songs:,}", f"{lr:g}", way, error, *cells])
        print(rows[-1], flush=True)
    return rows


def epoch_row(songs: int) -> list[str]:
    """Processor seconds of an epoch at the published size, the least of four turns."""
    data, _ = make_data(songs, ApexConfig())
    train, val = (data[split].samples("song", "full") for split in ("train", "val"))
    kinds = [TrainSettings(members=members).each() for members in (1, MEMBERS)]
    accelerator = Accelerator(cpu=True)
    loops = [
        [SampleLoop(one, ApexConfig(), train, val, accelerator) for one in kind] for kind in kinds
    ]
    seconds = np.empty((4, 2))
    for turn in seconds:
        for place, members in enumerate(loops):
            started = time.process_time()
            for loop in members:
                loop.run_epoch()
            turn[place] = time.process_time() - started
    one, eight = seconds.min(axis=0)
    return [f"{songs:,}", f"{one:.2f}", f"{eight:.2f}", f"{eight / one:.1f}"]


def command_row(songs: int) -> list[str]:
    """The command with and without members, each a process of its own."""
    data, _ = make_data(songs, ApexConfig())
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(data, folder / "shards")
        one, eight = (
            command_seconds(folder, str(members), "--members", str(members))
            for members in (1, MEMBERS)
        )
    return [f"{songs:,}", f"{one:.1f}", f"{eight:.1f}", f"{eight / one:.1f}"]


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
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": threads, "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    return children_seconds() - before


def children_seconds() -> float:
    """Processor seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    parser.add_argument("--sizes", default="500,1500,10000", help="training songs")
    parser.add_argument("--commands", default="1500", help="training songs of the command")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [200] if arguments.quick else [int(size) for size in arguments.sizes.split(",")]
    rows = [row for songs in sizes for lr in (1e-4, 1e-3) for row in rows_of(songs, lr, 0)]
    text = markdown_table(COLUMNS, rows)
    names = ("songs", "one, s", "eight, s", "eight / one")
    epochs = markdown_table(names, [epoch_row(songs) for songs in sizes])
    text += f"\n\nAn epoch:\n\n{epochs}"
    sizes = [] if arguments.quick else [int(n) for n in arguments.commands.split(",") if n]
    if commands := [command_row(songs) for songs in sizes]:
        text += f"\n\nThe command:\n\n{markdown_table(names, commands)}"
    write_result("Ensembles", text, arguments.output)


if __name__ == "__main__":
    main()
