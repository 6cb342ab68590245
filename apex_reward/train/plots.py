"""Pictures of a training run and of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from scipy.stats import t as student

from apex_reward.report.figures import BAR, SERIES, SOFT, label, new_panels, save_figure, style
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS, POPULARITY_HEADS
from apex_reward.train.intervals import METRICS
from apex_reward.train.table import TABLE1_KEYS, table1, table2

if TYPE_CHECKING:
    from apex_reward.train.loop import HistoryRow
    from apex_reward.train.settings import Condition

AXIS_NAMES = {
    "mse": "MSE (squared points)",
    "mae": "MAE (points)",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
# Name of a row, and for each head the mean and half its interval, per measure.
Measures = Mapping[str, Mapping[str, tuple[float, float]]]
Lines = Sequence[tuple[str, Measures]]


def plot_curves(
    histories: Sequence[Sequence[HistoryRow]],
    conditions: Sequence[Condition],
    path: Path,
    formats: Sequence[str] = ("png",),
) -> None:
    """Loss, validation error per head relative to its first value, and sigma, over epochs.

    Of an ensemble every member is drawn, in thin lines of its head's colour.

    Args:
        path: of the PNG; other formats are written beside it.
        formats: as `save_figure` takes them.
    """
    first = conditions[0]
    heads = [head for head in HEADS if f"val_mse_{head}" in histories[0][0]]
    learned = first.loss == "uncertainty"
    figure, axes = new_panels(1, 3 if learned else 2, 15 if learned else 10, 4.2)
    axes[0].set(title=f"Loss: {first.loss}", ylabel="loss")
    axes[1].set(title="Validation MSE / its first epoch", ylabel="ratio")
    for number, history in enumerate(histories):
        width = 1.5 if len(histories) == 1 else 0.6
        _draw_model(axes, history, heads, learned, width, labelled=number == 0)
    if learned:
        axes[2].set(title="Learned sigma", ylabel="sigma", yscale="log")
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.legend(fontsize=8, frameon=False)
    shape = f"{first.shared} trunk layers, {first.mode} mode, task {first.task}"
    seeds = f"seed {first.seed}"
    if len(conditions) > 1:
        seeds = f"{len(conditions)} members, seeds {first.seed} to {conditions[-1].seed}"
    figure.suptitle(f"{shape}, {seeds}")
    save_figure(figure, path.with_suffix(""), formats)


def _draw_model(
    axes: Sequence[Axes],
    history: Sequence[HistoryRow],
    heads: Sequence[str],
    learned: bool,
    width: float,
    labelled: bool,
) -> None:
    """One model's lines; every quantity has the same colour in every model."""
    epochs = [row["epoch"] for row in history]
    best = min(history, key=lambda row: row["val_loss"])["epoch"]
    lines = [(axes[0], "train_loss", "training (dropout on)", 1.0)]
    lines.append((axes[0], "val_loss", "validation", 1.0))
    lines += [(axes[1], f"val_mse_{head}", head, history[0][f"val_mse_{head}"]) for head in heads]
    if learned:
        lines += [(axes[2], f"sigma_{head}", head, 1.0) for head in heads]
    for number, (panel, name, text, unit) in enumerate(lines):
        colour = SERIES[number if number < 2 else (number - 2) % len(heads)]
        values = [row[name] / unit for row in history]
        panel.plot(epochs, values, color=colour, linewidth=width, label=text if labelled else None)
    for panel in axes:
        text = f"best epoch ({best})" if labelled else ""
        panel.axvline(best, color=SOFT, linestyle=":", linewidth=width, label=text or None)


def plot_tables(
    results: Sequence[Mapping[str, Any]], output: Path, formats: Sequence[str] = ("png",)
) -> None:
    """A figure beside each of the grid's tables: every measure of every condition.

    With several seeds each dot, a mean, has its 95% interval (Student's t over the seeds).

    Args:
        results: rows of `results.csv`.
        output: gets `table1.png` and, where there is task full in song mode, `table2.png`.
        formats: as `save_figure` takes them.
    """
    rows = [dict(row) for row in results]
    seeds = len({row["seed"] for row in rows})
    first = [
        (
            " ".join(str(row[key]) for key in TABLE1_KEYS),
            {h: _measures(row, f"{h.removeprefix('score_')}_", seeds) for h in POPULARITY_HEADS},
        )
        for row in table1(rows)
    ]
    second: dict[str, dict[str, Mapping[str, tuple[float, float]]]] = {}
    for row in table2(rows):
        second.setdefault(f"model {row['model']}", {})[row["head"]] = _measures(row, "", seeds)
    note = f"{seeds} seeds, 95% intervals of the mean" if seeds > 1 else "one seed"
    _draw_table(first, POPULARITY_HEADS, note, output / "table1", formats)
    if second:
        _draw_table(list(second.items()), AESTHETIC_HEADS, note, output / "table2", formats)


def plot_metrics(report: Mapping[str, Any], output: Path, formats: Sequence[str]) -> None:
    """Every measure of every head with its bootstrap interval over songs.

    Args:
        report: the content of `metrics.json` with `ci95`.
        output: gets `popularity` and, where the model has them, `aesthetics` in each format: their
            errors are on different scales.
        formats: as `save_figure` takes them; none draws nothing.
    """
    groups = {"popularity": POPULARITY_HEADS, "aesthetics": AESTHETIC_HEADS}
    for name, heads in groups.items() if formats else ():
        known = [head for head in heads if head in report["metrics"]]
        if not known:
            continue
        figure, axes = new_panels(1, len(METRICS), 11, 0.9 + 0.34 * len(known), sharey=True)
        for panel, metric in zip(axes, METRICS, strict=True):
            for place, head in enumerate(known):
                value, ends = report["metrics"][head][metric], report["ci95"][head][metric]
                panel.plot(ends, [place, place], color=BAR, linewidth=2)
                panel.plot([value], [place], "o", color=BAR)
            panel.set_xlabel(AXIS_NAMES[metric])
        axes[0].set_yticks(range(len(known)), known)
        axes[0].set_ylim(len(known) - 0.5, -0.5)
        with style():
            note = f"{report['n_songs']} songs, 95% bootstrap intervals over songs"
            figure.suptitle(note, fontsize=9, color=SOFT, x=0.99, ha="right")
        save_figure(figure, output / name, formats)


def _measures(row: Mapping[str, Any], prefix: str, seeds: int) -> dict[str, tuple[float, float]]:
    """Mean and half of the interval of each measure of a row of a table."""
    factor = float(student.ppf(0.975, seeds - 1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    return {name: (row[prefix + name][0], factor * row[prefix + name][1]) for name in METRICS}


def _draw_table(
    lines: Lines, heads: Sequence[str], note: str, path: Path, formats: Sequence[str]
) -> None:
    figure, axes = new_panels(1, len(METRICS), 13, 1.4 + 0.32 * len(lines), sharey=True)
    for panel, metric in zip(axes, METRICS, strict=True):
        for head, colour, shift in _series(heads):
            _draw_dots(panel, [measures[head][metric] for _, measures in lines], shift, colour)
        panel.set_xlabel(AXIS_NAMES[metric])
    axes[0].set_yticks(range(len(lines)), [label(name) for name, _ in lines])
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    handles = [axes[0].plot([], [], "o", color=colour)[0] for _, colour, _ in _series(heads)]
    with style():
        figure.legend(handles, list(heads), loc="outside upper left", ncols=len(heads))
        figure.suptitle(note, fontsize=9, color=SOFT, x=0.99, ha="right")
    save_figure(figure, path, formats)


def _series(heads: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """Each head with its colour and how far below its line it is drawn."""
    for place, head in enumerate(heads):
        yield head, SERIES[place], 0.7 * ((place + 0.5) / len(heads) - 0.5)


def _draw_dots(
    panel: Axes, cells: Sequence[tuple[float, float]], shift: float, colour: str
) -> None:
    means, halves = zip(*cells, strict=True)
    places = [place + shift for place in range(len(cells))]
    bars = list(halves) if any(halves) else None
    panel.errorbar(means, places, xerr=bars, fmt="o", color=colour, markersize=4, elinewidth=1.2)
