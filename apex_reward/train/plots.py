"""Pictures of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.files.tables import atomic_path
from apex_reward.scores.apex import HEADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from apex_reward.train.program import HistoryRow
    from apex_reward.train.settings import Condition


def plot_curves(history: Sequence[HistoryRow], condition: Condition, path: Path) -> None:
    """Loss, validation error per head relative to its first value, and sigma, over epochs."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    best = min(history, key=lambda row: row["val_loss"])["epoch"]
    heads = [head for head in HEADS if f"val_mse_{head}" in history[0]]
    learned = condition.loss == "uncertainty"
    figure = Figure(figsize=(15 if learned else 10, 4.2), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, 3 if learned else 2))
    for name, label in (("train_loss", "training (dropout on)"), ("val_loss", "validation")):
        axes[0].plot(epochs, [row[name] for row in history], label=label)
    axes[0].set_title(f"Loss: {condition.loss}")
    for head in heads:
        errors = [row[f"val_mse_{head}"] for row in history]
        axes[1].plot(epochs, [error / errors[0] for error in errors], label=head)
    axes[1].set_title("Validation MSE / its first epoch")
    if learned:
        for head in heads:
            axes[2].plot(epochs, [row[f"sigma_{head}"] for row in history], label=head)
        axes[2].set_title("Learned sigma")
        axes[2].set_yscale("log")
    for panel in axes:
        panel.axvline(best, color="0.6", linestyle=":", label=f"best epoch ({best})")
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    shape = f"{condition.shared} trunk layers, {condition.mode} mode, task {condition.task}"
    figure.suptitle(f"{shape}, seed {condition.seed}")
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG whole, without the date that would change its bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
