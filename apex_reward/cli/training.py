"""The options that `train` and `grid` share: what is trained on, and how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from apex_reward.train.settings import TrainSettings

LABELS = "What the shards lack"
_label = partial(typer.Option, rich_help_panel=LABELS)
_schedule = partial(typer.Option, rich_help_panel="Optimiser and schedule")
Mode = Literal["song", "segment"]
OutputOption = Annotated[Path, typer.Option(metavar="FOLDER", help="For the results.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")]
TrackersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--report-to", metavar="NAME", help="Trackers of accelerate: tensorboard, wandb, ..."
    ),
]
TeacherFileOption = Annotated[
    Path | None,
    _label(
        "--songeval", metavar="FILE", help="Aesthetic labels per song: .csv, .jsonl or .parquet."
    ),
]


@dataclass(frozen=True)
class DataOptions:
    """What is trained on."""

    data: Annotated[
        Path, typer.Option("--data", metavar="FOLDER", help="With train/, val/ and test/.")
    ]
    encoder: Annotated[
        str | None,
        _label(
            metavar="FOLDER",
            help="What made the embeddings, where the shards do not say: folder or hub id.",
        ),
    ] = None
    teacher_file: TeacherFileOption = None

    def load(self, task: str, layers: bool) -> Any:
        """The training data of a task, with layer embeddings where they are asked for."""
        from apex_reward.train.session import load_training_data

        return load_training_data(
            self.data, task, layers=layers, encoder=self.encoder, teacher_file=self.teacher_file
        )


@dataclass(frozen=True)
class ScheduleOptions:
    """`TrainSettings` as the command line says them; the defaults are the paper's."""

    epochs: Annotated[int, _schedule(metavar="X", help="Length of the cosine annealing.")] = 50
    batch_size: Annotated[int, _schedule(metavar="X", help="Samples per process and step.")] = 512
    lr: Annotated[float, _schedule(metavar="X", help="First learning rate of AdamW.")] = 1e-4
    weight_decay: Annotated[float, _schedule(metavar="X", help="Weight decay of AdamW.")] = 1e-4
    patience: Annotated[
        int, _schedule(metavar="X", help="Epochs without a better validation loss to stop.")
    ] = 20
    precision: Annotated[
        Literal["no", "bf16", "fp16"],
        _schedule(help="Of matrix products; no is float32."),
    ] = "no"
    train_pooling: Annotated[
        bool,
        _schedule("--train-pooling", help="Train the layer pooling (needs layer_embeddings)."),
    ] = False

    def settings(self) -> TrainSettings:
        """Checked; raises UsageError for what can't be."""
        from apex_reward.train.settings import TrainSettings

        return TrainSettings(**vars(self))
