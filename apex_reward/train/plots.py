"""Pictures of a training run and of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from apex_reward.report.figures import SERIES, SOFT, new_panels, save_figure
from apex_reward.scores.apex import HEADS

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
