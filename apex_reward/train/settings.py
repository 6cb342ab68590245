"""What is trained and how. The module is light: the command line reads its help from here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal, get_args

from apex_reward.errors import UsageError
from apex_reward.scores.apex import Task

Loss = Literal["equal", "weighted", "uncertainty", "standardized"]
Mode = Literal["song", "segment"]
Precision = Literal["no", "bf16", "fp16"]
Select = Literal["val_error", "val_loss"]
LOSSES: tuple[str, ...] = get_args(Loss)
PAPER_LOSSES = ("equal", "weighted", "uncertainty")
MODES: tuple[str, ...] = get_args(Mode)
PAPER: dict[str, Any] = {"loss": "uncertainty", "members": 1, "select": "val_loss"}
"""What the paper's recipe sets."""
Rule = tuple[Callable[[Any], bool], str]
BOUNDS: dict[str, Rule] = {
    "epochs": (lambda value: value >= 1, "1 or more"),
    "batch_size": (lambda value: value >= 2, "2 or more"),
    "lr": (lambda value: 0 < value < math.inf, "more than 0"),
    "weight_decay": (lambda value: value >= 0, "0 or more"),
    "patience": (lambda value: value >= 1, "1 or more"),
    "shared": (lambda value: value in (2, 3), "2 or 3 trunk layers"),
    "seed": (lambda value: value >= 0, "0 or more"),
    "members": (lambda value: value >= 1, "1 or more"),
}
"""What a setting must be, and in words."""
CHOICES = {"precision": Precision, "loss": Loss, "mode": Mode, "task": Task, "select": Select}
BOUNDS |= {
    name: (get_args(kind).__contains__, f"one of {', '.join(get_args(kind))}")
    for name, kind in CHOICES.items()
}


@dataclass(frozen=True)
class DistillSettings:
    """Distillation.

    Args:
        epochs: Most epochs; training stops earlier by the rank correlation on held-out songs.
        seed: Random seed of the held-out songs, the clips, the first weights and the order.
        size: Size of the student. tiny has about 0.2 million weights, base about 2.5 million.
    """

    epochs: Annotated[int, (1, None)] = 60
    seed: int = 42
    size: Literal["tiny", "small", "base"] = "base"


@dataclass(frozen=True)
class Schedule:
    """Optimiser and schedule. The defaults are the paper's.

    Args:
        epochs: Number of epochs of the cosine annealing.
        batch_size: Samples per process and step.
        lr: First learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        patience: Epochs without a better validation figure before training stops.
        precision: Number type of the matrix products; no means float32.
        train_pooling: Train the layer pooling too (needs layer_embeddings in the shards).
    """

    epochs: int = 50
    batch_size: int = 512
    lr: float = 1e-4
    weight_decay: float = 1e-4
    patience: int = 20
    precision: Precision = "no"
    train_pooling: bool = False

    def __post_init__(self) -> None:
        known = {name: value for name, value in vars(self).items() if name in BOUNDS}
        problems = [
            f"{name} is {known[name]}; expected {expected}"
            for name, (good, expected) in BOUNDS.items()
            if name in known and not good(known[name])
        ]
        if problems:
            raise UsageError("; ".join(problems))

    def lr_at(self, epoch: int) -> float:
        """Cosine annealing to zero, by epoch from 1: lr (1 + cos(pi (epoch - 1) / epochs)) / 2.

        Examples:
            >>> [round(Schedule(epochs=2, lr=1.0).lr_at(epoch), 12) for epoch in (1, 2)]
            [1.0, 0.5]
        """
        return self.lr * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2


@dataclass(frozen=True)
class TrainSettings(Schedule):
    """Training run.

    Args:
        loss: How the errors of the heads become one number.
        shared: Number of trunk layers, 2 or 3.
        mode: What a training sample is: a song, or each of its segments.
        task: Which heads are trained: full means all seven, popularity the first two.
        seed: Random seed of the initial weights, the order of the samples and the dropout.
        members: Number of predictors; more than 1 makes an ensemble with seeds from --seed on.
        select: Validation figure that chooses the epoch: val_error is the mean over the heads of
            the squared error over the label variance; val_loss is the training loss.
        paper: Use the paper's recipe: loss uncertainty, one member, selection on val_loss.
    """

    loss: Loss = "standardized"
    shared: int = 2
    mode: Mode = "song"
    task: Task = "full"
    seed: int = 42
    members: int = 1
    select: Select = "val_error"
    paper: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paper:
            return
        for name, value in PAPER.items():
            default = getattr(TrainSettings, name)
            if getattr(self, name) not in (default, value):
                raise UsageError(f"--paper sets {name} to {value}; leave out --{name} or --paper")
            object.__setattr__(self, name, value)

    @property
    def condition(self) -> dict[str, Any]:
        """What tells two runs of a grid apart: the first columns of `results.csv`."""
        names = ("loss", "shared", "mode", "task", "seed")
        return {name: getattr(self, name) for name in names}

    def each(self) -> list[TrainSettings]:
        """The settings of each member: the same with seeds from `seed` on.

        >>> tuple(one.seed for one in TrainSettings(seed=7, members=3).each())
        (7, 8, 9)
        """
        return [replace(self, seed=self.seed + number) for number in range(self.members)]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def conditions(
    losses: Sequence[str] = PAPER_LOSSES,
    seeds: Sequence[int] = (42,),
    schedule: Schedule | None = None,
) -> list[TrainSettings]:
    """The paper's 24 conditions (for three losses) by seeds, in the order of its table.

    Every condition selects its epoch by the paper's rule, `val_loss`.

    >>> len(conditions()), len(conditions(seeds=(42, 43)))
    (24, 48)
    """
    table = product((2, 3), losses, ("segment", "song"), ("popularity", "full"), seeds)
    fixed: dict[str, Any] = {**asdict(schedule or Schedule()), "select": "val_loss"}
    names = ("shared", "loss", "mode", "task", "seed")
    rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in table]
    return [TrainSettings(**fixed, **row) for row in rows]
