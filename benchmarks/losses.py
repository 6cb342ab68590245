"""The four losses side by side: which heads learn, how fast, on data whose signal is known.

    python benchmarks/losses.py --output losses.md

Two settings, the same seeds for every loss, all models of a setting one after the other:

- `short`: the published network (768-512-256, heads 128-64), 4,000 songs, 25 epochs, lr 1e-3;
- `paper`: the paper's schedule (lr 1e-4, batch 512, 50 epochs of cosine annealing, patience 20)
  on 60,000 songs with a narrow network, so that it takes thousands of steps as the paper's does.

Every song is a hidden vector. A head hears a direction and a product of two directions of it; the
rest of its label is noise. "Reached" is the test Spearman correlation over that of the noiseless
signal itself: 1 is perfect. The baseline is the paper's `equal`. Beside the table come the curves
of explained validation variance, a PNG.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from result_file import write_result

from apex_reward.data.shards import EmbeddingSource
from apex_reward.metrics import spearman
from apex_reward.model.config import ApexConfig
from apex_reward.model.predictor import LayerPooling
from apex_reward.report.figures import new_panels, save_figure
from apex_reward.report.markdown import markdown_table
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS, POPULARITY_HEADS
from apex_reward.train.loop import SampleLoop
from apex_reward.train.settings import LOSSES, TrainSettings
from apex_reward.train.shards import Data, Split
from apex_reward.train.trainer import checkpoint_of, sample_loop

# Correlation of each label with its signal: popularity is noisy, as in the paper.
RHO = {head: 0.6 if head in POPULARITY_HEADS else 0.85 for head in HEADS}
AESTHETIC_SD = 0.65
# Curves that coincide stay visible.
STYLES = {"equal": "-", "weighted": "--", "uncertainty": ":", "standardized": "-"}
GROUPS = {"popularity": POPULARITY_HEADS, "aesthetics": AESTHETIC_HEADS}


@dataclass(frozen=True)
class Setting:
    """A data size, a network and a schedule."""

    name: str
    songs: int
    config: ApexConfig
    settings: TrainSettings
    seeds: tuple[int, ...]


def settings(quick: bool) -> list[Setting]:
    narrow = ApexConfig(
        encoder={"hidden_size": 64, "num_attention_heads": 4},
        trunk_widths=(64, 32),
        head_widths=(16, 8),
    )
    return [
        Setting(
            "short",
            800 if quick else 4000,
            narrow if quick else ApexConfig(),
            TrainSettings(epochs=5 if quick else 25, batch_size=512, lr=1e-3, patience=25),
            (42,) if quick else (42, 43, 44),
        ),
        Setting(
            "paper",
            2000 if quick else 60_000,
            narrow,
            TrainSettings(epochs=5 if quick else 50),
            (42,) if quick else (42, 43),
        ),
    ]


def make_data(songs: int, config: ApexConfig) -> tuple[Data, dict[str, float]]:
    """Splits with a known signal, and the test Spearman of the noiseless signal per head."""
    rng = np.random.default_rng(0)
    width, splits, ceiling = config.width, {}, {}
    directions = rng.standard_normal((len(HEADS), 3, width)) / np.sqrt(width)
    for split, count in (("train", songs), ("val", max(200, songs // 17)), ("test", 2000)):
        hidden = rng.standard_normal((count, width)).astype(np.float32)
        labels = np.empty((count, len(HEADS)), np.float32)
        for column, head in enumerate(HEADS):
            a, b, c = (hidden @ directions[column].T.astype(np.float32)).T
            signal = (a + 0.4 * b * c) / np.sqrt(1 + 0.16)
            rho = RHO[head]
            latent = rho * signal + np.sqrt(1 - rho**2) * rng.standard_normal(count)
            labels[:, column] = _popularity(latent) if head in POPULARITY_HEADS else _rated(latent)
            ceiling[head] = spearman(signal, labels[:, column])
        names = [f"{split}{i}" for i in range(count)]
        splits[split] = Split(hidden, np.arange(count), np.ones(count, np.float32), labels, names)
    return Data(splits, EmbeddingSource.of(config, LayerPooling()), "full"), ceiling


def _popularity(latent: np.ndarray) -> np.ndarray:
    share = (np.argsort(np.argsort(latent)) + 1) / len(latent)
    return 100 * share ** (np.log(0.5) / np.log(0.8))


def _rated(latent: np.ndarray) -> np.ndarray:
    return np.clip(3 + AESTHETIC_SD * latent, 1, 5)


def run(setting: Setting) -> tuple[list[SampleLoop], dict[str, list[list[float]]], float]:
    """Train all losses and seeds; per loss a row of reached shares per seed."""
    data, ceiling = make_data(setting.songs, setting.config)
    accelerator = Accelerator(cpu=True)
    loops = [
        sample_loop(data, replace(setting.settings, loss=loss, seed=seed), accelerator)
        for loss in LOSSES
        for seed in setting.seeds
    ]
    started = time.perf_counter()
    for loop in loops:
        while not loop.finished:
            loop.run_epoch()
    seconds = time.perf_counter() - started
    reached: dict[str, list[list[float]]] = {loss: [] for loss in LOSSES}
    for loop in loops:
        pred = checkpoint_of([loop], data).predict(data["test"])[:, 0]
        labels = data["test"].labels
        shares = [
            spearman(pred[:, i], labels[:, i]) / ceiling[head] for i, head in enumerate(HEADS)
        ]
        reached[loop.settings.loss].append(shares)
    return loops, reached, seconds


def group_mean(shares: list[list[float]], group: tuple[str, ...]) -> tuple[float, float]:
    """Mean over a group's heads and the spread of that mean over seeds."""
    columns = [HEADS.index(head) for head in group]
    means = np.array(shares)[:, columns].mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else 0.0


def rows_of(
    setting: Setting, reached: dict[str, list[list[float]]], seconds: float
) -> list[list[str]]:
    base = {name: group_mean(reached["equal"], heads)[0] for name, heads in GROUPS.items()}
    rows = []
    for loss in LOSSES:
        cells = []
        for name, heads in GROUPS.items():
            mean, spread = group_mean(reached[loss], heads)
            cells += [f"{mean:.2f} ± {spread:.2f}", f"{mean / base[name]:.2f}"]
        rows.append([setting.name, loss, *cells, f"{seconds:.0f}"])
    return rows


def plot(results: list[tuple[Setting, list[SampleLoop]]], path: Path) -> None:
    """Explained validation variance per epoch, mean and range over seeds, a column per group."""
    figure, panels = new_panels(len(results), len(GROUPS), 11, 4 * len(results))
    for place, (setting, loops) in enumerate(results):
        line = panels[place * len(GROUPS) : (place + 1) * len(GROUPS)]
        labels = loops[0].val_labels
        variance = labels.var(dim=0, unbiased=False).tolist()
        for panel, (group, heads) in zip(line, GROUPS.items(), strict=True):
            for loss in LOSSES:
                curves = [
                    [
                        np.mean([1 - row[f"val_mse_{h}"] / variance[HEADS.index(h)] for h in heads])
                        for row in loop.history
                    ]
                    for loop in loops
                    if loop.settings.loss == loss
                ]
                length = min(map(len, curves))
                values = np.array([curve[:length] for curve in curves])
                epochs = np.arange(1, length + 1)
                panel.plot(epochs, values.mean(axis=0), STYLES[loss], label=loss)
                panel.fill_between(epochs, values.min(axis=0), values.max(axis=0), alpha=0.2)
            panel.set_title(f"{setting.name}: {group}")
            panel.set_xlabel("epoch")
            panel.set_ylabel("explained validation variance")
            panel.set_ylim(-0.1, None)
            panel.legend()
    save_figure(figure, path.with_suffix(""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file; the PNG lies beside it")
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, results = [], []
    for setting in settings(arguments.quick):
        loops, reached, seconds = run(setting)
        rows += rows_of(setting, reached, seconds)
        results.append((setting, loops))
    columns = ["setting", "loss", "popularity reached", "x equal", "aesthetics reached", "x equal"]
    text = markdown_table([*columns, "seconds (all models)"], rows)
    text += "\n\nReached: test Spearman over that of the noiseless signal."
    write_result("Losses", text, arguments.output)
    if arguments.output:
        plot(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
