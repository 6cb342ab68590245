"""What is trained and how: the conditions of the paper's ablation and its training settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

from apex_reward.errors import UsageError
from apex_reward.scores.apex import task_heads
from apex_reward.train.losses import LOSSES, PAPER_LOSSES
from apex_reward.train.split import MODES

PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Condition:
    """One trained model of the ablation.

    Attributes:
        loss: `equal`, `weighted`, `uncertainty` or `standardized`.
        shared: trunk layers, 2 or 3.
        mode: `song` or `segment`.
        task: `popularity` or `full`.
        seed: reaches the initial weights, the order of the samples and the dropout.
    """

    loss: str = "uncertainty"
    shared: int = 2
    mode: str = "song"
    task: str = "full"
    seed: int = 42

    def __post_init__(self) -> None:
        task_heads(self.task)
        if self.loss not in LOSSES:
            raise UsageError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES)}")
        if self.shared not in (2, 3):
            raise UsageError(f"shared is {self.shared}; expected 2 or 3 trunk layers")
        if self.mode not in MODES:
            raise UsageError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; expected 0 or more")

    @property
    def group(self) -> tuple[int, str, str]:
        """Conditions with the same group train as one program."""
        return self.shared, self.mode, self.task


def conditions(
    losses: Sequence[str] = PAPER_LOSSES, seeds: Sequence[int] = (42,)
) -> list[Condition]:
    """The paper's 24 conditions (for three losses) by seeds, in the order of its table.

    >>> len(conditions()), len(conditions(seeds=(42, 43)))
    (24, 48)
    """
    table = product((2, 3), losses, ("segment", "song"), ("popularity", "full"), seeds)
    return [Condition(loss, shared, mode, task, seed) for shared, loss, mode, task, seed in table]


def ensemble(condition: Condition, members: int) -> list[Condition]:
    """The conditions of an ensemble's members: the same with the seeds from `condition.seed` on.

    Raises:
        UsageError: fewer than one member.

    >>> tuple([member.seed for member in ensemble(Condition(seed=7), 3)])
    (7, 8, 9)
    """
    if members < 1:
        raise UsageError(f"members is {members}; expected 1 or more")
    return [replace(condition, seed=condition.seed + number) for number in range(members)]


@dataclass(frozen=True)
class TrainSettings:
    """The paper's optimiser and schedule as defaults.

    Attributes:
        epochs: length of the cosine annealing.
        batch_size: samples per process and step.
        lr: AdamW's first learning rate.
        weight_decay: AdamW's.
        patience: epochs without a better validation loss before a model stops.
        precision: `no` (float32), `bf16` or `fp16` matrix products.
        clip: largest norm of a model's gradient.
        train_pooling: train the layer pooling too; needs `layer_embeddings`.
        bootstrap: every model trains on its seed's own draw of whole songs, with replacement.
    """

    epochs: int = 50
    batch_size: int = 512
    lr: float = 1e-4
    weight_decay: float = 1e-4
    patience: int = 20
    precision: str = "no"
    clip: float = 1.0
    train_pooling: bool = False
    bootstrap: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; expected {expected}"
            for name, value, good, expected in (
                ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
                ("batch_size", self.batch_size, self.batch_size >= 2, "2 or more"),
                ("lr", self.lr, 0 < self.lr < math.inf, "more than 0"),
                ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
                ("patience", self.patience, self.patience >= 1, "1 or more"),
                ("precision", self.precision, self.precision in PRECISIONS, str(PRECISIONS)),
                ("clip", self.clip, self.clip > 0, "more than 0"),
            )
            if not good
        ]
        if problems:
            raise UsageError("; ".join(problems))

    def lr_at(self, epoch: int) -> float:
        """Cosine annealing to zero, by epoch from 1: lr (1 + cos(pi (epoch - 1) / epochs)) / 2.

        Examples:
            >>> [round(TrainSettings(epochs=2, lr=1.0).lr_at(epoch), 12) for epoch in (1, 2)]
            [1.0, 0.5]
        """
        return self.lr * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return asdict(self)
