"""Pictures of a training run and of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from apex_reward.report.figures import SERIES, SOFT, label, new_panels, save_figure, style
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS, POPULARITY_HEADS
from apex_reward.train.report import METRICS
from apex_reward.train.settings import TrainSettings
from apex_reward.train.table import TABLE2_CONDITION, over_seeds

AXIS_NAMES = {
    "mse": "MSE (squared points)",
    "mae": "MAE (points)",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
# Name of a line, and for each head and measure the value with the ends of its interval.
Lines = Sequence[tuple[str, Mapping[str, Mapping[str, tuple[float, float, float]]]]]


def plot_curves(
    histories: Sequence[Sequence[Mapping[str, float]]],
    runs: Sequence[TrainSettings],
    path: Path,
    formats: Sequence[str] = ("png",),
) -> None:
    """Loss, validation error per head relative to its first value, and sigma, over epochs.

    Every member of an ensemble is drawn, in thin lines of its head's colour.

    Args:
        path: of the PNG; other formats are written beside it.
        formats: as `save_figure` takes them.
    """
    first, width = runs[0], 1.5 if len(runs) == 1 else 0.6
    heads = [head for head in HEADS if f"val_mse_{head}" in histories[0][0]]
    learned = first.loss == "uncertainty"
    figure, axes = new_panels(1, 3 if learned else 2, 15 if learned else 10, 4.2)
    axes[0].set(title=f"Loss: {first.loss}", ylabel="loss")
    axes[1].set(title="Validation MSE / its first epoch", ylabel="ratio")
    if learned:
        axes[2].set(title="Learned sigma", ylabel="sigma", yscale="log")
    lines = [(0, "train_loss", "training (dropout on)", 0), (0, "val_loss", "validation", 1)]
    lines += [(1, f"val_mse_{head}", head, i) for i, head in enumerate(heads)]
    lines += [(2, f"sigma_{head}", head, i) for i, head in enumerate(heads) if learned]
    for number, history in enumerate(histories):
        epochs = [row["epoch"] for row in history]
        for panel, name, text, colour in lines:
            values = [row[name] / (history[0][name] if panel == 1 else 1) for row in history]
            named = None if number else text
            axes[panel].plot(epochs, values, color=SERIES[colour], linewidth=width, label=named)
        best = min(history, key=lambda row: row[first.select])["epoch"]
        named = None if number else f"best epoch ({best:g}), by {first.select}"
        for axis in axes:
            axis.axvline(best, color=SOFT, linestyle=":", linewidth=width, label=named)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.legend(fontsize=8, frameon=False)
    seeds = f"seed {first.seed}"
    if len(runs) > 1:
        seeds = f"{len(runs)} members, seeds {first.seed} to {runs[-1].seed}"
    figure.suptitle(f"{first.shared} trunk layers, {first.mode} mode, task {first.task}, {seeds}")
    save_figure(figure, path.with_suffix(""), formats)


def plot_tables(
    results: Sequence[dict[str, Any]], output: Path, formats: Sequence[str] = ("png",)
) -> None:
    """A figure beside each of the grid's tables: every measure of every condition.

    With several seeds each dot, a mean, has its 95% interval (Student's t over the seeds).

    Args:
        results: rows of `results.csv`.
        output: gets `table1.png` and, where there is task full in song mode, `table2.png`.
        formats: as `save_figure` takes them.
    """
    seeds = len({row["seed"] for row in results})
    factor = float(student.ppf(0.975, seeds - 1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    note = f"{seeds} seeds, 95% intervals of the mean" if seeds > 1 else "one seed"
    first, second = [], []
    for condition, found in over_seeds(results).items():
        cells = {
            head: {name: (m, m - factor * s, m + factor * s) for name, (m, s) in measures.items()}
            for head, measures in found.items()
        }
        first.append((" ".join(map(str, condition)), cells))
        if condition[3:] == TABLE2_CONDITION:
            second.append((f"model {condition[0]}", cells))
    _draw(first, POPULARITY_HEADS, note, output / "table1", formats)
    if second:
        _draw(second, AESTHETIC_HEADS, note, output / "table2", formats)


def plot_metrics(report: Mapping[str, Any], output: Path, formats: Sequence[str]) -> None:
    """Every measure of every head with its 95% interval over songs.

    Args:
        report: the content of `metrics.json`.
        output: gets `popularity` and, where the model has them, `aesthetics` in each format: their
            errors are on different scales.
        formats: as `save_figure` takes them; none draws nothing.
    """
    note = f"{report['n_songs']} songs, 95% intervals over songs"
    groups = {"popularity": POPULARITY_HEADS, "aesthetics": AESTHETIC_HEADS}
    for name, heads in groups.items() if formats else ():
        lines = [
            (head, {"": {m: (values[m], *report["ci95"][head][m]) for m in METRICS}})
            for head, values in report["metrics"].items()
            if head in heads
        ]
        if lines:
            _draw(lines, ("",), note, output / name, formats)


def _draw(
    lines: Lines, heads: Sequence[str], note: str, path: Path, formats: Sequence[str]
) -> None:
    """A panel per measure, a line of dots with intervals per name, a colour per head."""
    figure, axes = new_panels(1, len(METRICS), 13, 1.4 + 0.34 * len(lines), sharey=True)
    for place, head in enumerate(heads):
        colour, shift = SERIES[place], 0.7 * ((place + 0.5) / len(heads) - 0.5)
        places = [number + shift for number in range(len(lines))]
        for panel, metric in zip(axes, METRICS, strict=True):
            values, low, high = zip(*(measures[head][metric] for _, measures in lines), strict=True)
            panel.hlines(places, low, high, color=colour, linewidth=1.2)
            panel.plot(values, places, "o", color=colour, markersize=4, label=head or None)
            panel.set_xlabel(AXIS_NAMES[metric])
    axes[0].set_yticks(range(len(lines)), [label(name) for name, _ in lines])
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    with style():
        if heads != ("",):
            handles = axes[0].get_legend_handles_labels()[0]
            figure.legend(handles, list(heads), loc="outside upper left", ncols=len(heads))
        figure.suptitle(note, fontsize=9, color=SOFT, x=0.99, ha="right")
    save_figure(figure, path, formats)
