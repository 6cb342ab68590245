"""Pictures of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.files.tables import atomic_path
from apex_reward.scores.apex import HEADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from apex_reward.train.loop import HistoryRow
    from apex_reward.train.settings import Condition


def plot_curves(
    histories: Sequence[Sequence[HistoryRow]], conditions: Sequence[Condition], path: Path
) -> None:
    """Loss, validation error per head relative to its first value, and sigma, over epochs.

    Of an ensemble every member is drawn, in thin lines of its head's colour.
    """
    from matplotlib.figure import Figure

    first = conditions[0]
    heads = [head for head in HEADS if f"val_mse_{head}" in histories[0][0]]
    learned = first.loss == "uncertainty"
    figure = Figure(figsize=(15 if learned else 10, 4.2), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, 3 if learned else 2))
    axes[0].set_title(f"Loss: {first.loss}")
    axes[1].set_title("Validation MSE / its first epoch")
    for number, history in enumerate(histories):
        width = 1.5 if len(histories) == 1 else 0.6
        _draw_model(axes, history, heads, learned, width, labelled=number == 0)
    if learned:
        axes[2].set_title("Learned sigma")
        axes[2].set_yscale("log")
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    shape = f"{first.shared} trunk layers, {first.mode} mode, task {first.task}"
    seeds = f"seed {first.seed}"
    if len(conditions) > 1:
        seeds = f"{len(conditions)} members, seeds {first.seed} to {conditions[-1].seed}"
    figure.suptitle(f"{shape}, {seeds}")
    save_figure(figure, path)


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
    for number, (panel, name, label, unit) in enumerate(lines):
        colour = f"C{number if number < 2 else (number - 2) % len(heads)}"
        values = [row[name] / unit for row in history]
        panel.plot(epochs, values, colour, linewidth=width, label=label if labelled else None)
    for panel in axes:
        label = f"best epoch ({best})" if labelled else None
        panel.axvline(best, color="0.6", linestyle=":", linewidth=width, label=label)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG whole, without the date that would change its bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
