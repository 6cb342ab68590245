"""What the training commands share: the accelerator and the data of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.data.shards import EmbeddingSource
from apex_reward.data.teacher import read_teacher
from apex_reward.errors import UsageError
from apex_reward.train.dataset import Data, load_data, split_folders

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "apex-reward"


def make_accelerator(
    precision: str = "no",
    report_to: Sequence[Any] = (),
    output: Path | None = None,
    settings: dict[str, Any] | None = None,
) -> Accelerator:
    """An accelerator for this process, its trackers started.

    Args:
        precision: `no`, `bf16` or `fp16`.
        report_to: tracker names as accelerate knows them (`tensorboard`, `wandb`, `all`, ...), or
            trackers.
        output: folder for trackers that write files.
        settings: what the trackers note about the run.

    Raises:
        UsageError: a tracker that is unknown or not installed, or a precision that the device
            cannot compute in.
    """
    from accelerate import Accelerator

    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(report_to) or None,
            project_dir=None if output is None else str(output),
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    if report_to:
        if not accelerator.log_with:
            raise UsageError(
                f"--report-to {','.join(map(str, report_to))}: not installed here; install the "
                "tracker's package, or leave it out"
            )
        accelerator.init_trackers(PROJECT, config=settings or {})
    return accelerator


def load_training_data(
    folder: Path,
    task: str,
    *,
    layers: bool = False,
    encoder: str | None = None,
    teacher_file: Path | None = None,
) -> Data:
    """The three splits of a data set, checked.

    Args:
        layers: read the layer embeddings, for training the layer pooling.
        encoder: what made the embeddings, where the shards do not say and it is not MERT-v1-95M.
        teacher_file: file of aesthetic labels per song, in place of the shards' own.
    """
    source = encoder_source(encoder) if encoder else None
    teacher = read_teacher(teacher_file) if teacher_file else None
    folders = split_folders(folder)
    return load_data(folders, task, source=source, layers=layers, teacher=teacher)


def encoder_source(name: str) -> EmbeddingSource:
    """The source that shards of this encoder have, without loading its weights."""
    from apex_reward.data.encoder import encoder_config
    from apex_reward.model.predictor import LayerPooling

    config = encoder_config(name)
    return EmbeddingSource.of(config, LayerPooling(len(config.layers)))
