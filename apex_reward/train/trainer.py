"""Train one predictor: the flow of `apex-reward train`, from data to a finished folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.data.shards import EmbeddingSource
from apex_reward.files.tables import json_line, write_text
from apex_reward.model.checkpoint import save_predictor
from apex_reward.train.dataset import Data
from apex_reward.train.evaluate import TRAINING_FILE, head_metrics, song_means, write_report
from apex_reward.train.plots import plot_curves
from apex_reward.train.program import HistoryRow, Program
from apex_reward.train.resume import load_state, save_state
from apex_reward.train.settings import Condition, Settings
from apex_reward.train.stack import PredictorStack, shape_of
from apex_reward.train.steps import predict

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FILE = "state.pt"
OnEpoch = Callable[[HistoryRow], None]


def train(
    data: Data,
    condition: Condition,
    settings: Settings,
    output: Path,
    *,
    accelerator: Accelerator,
    resume: bool = False,
    on_epoch: OnEpoch = lambda row: None,
) -> dict[str, Any]:
    """Train one model and leave its folder.

    Writes `best/` (loads with `ApexReward.from_pretrained`), `history.jsonl` (a row per epoch; it
    grows as `history.jsonl.partial`), `curves.png`, `metrics.json` (on the test split) and
    `state.pt`, from which `resume` goes on with the same bytes as a run that was never stopped.

    Args:
        data: train, val and test splits; with layer embeddings where the pooling trains.
        accelerator: device, precision, processes and trackers (already initialised).
        on_epoch: called with each new row of the history, on the main process.

    Returns:
        The content of `metrics.json`.
    """
    program = build_program([condition], data, settings, accelerator)
    state = output / STATE_FILE
    if resume and state.is_file():
        load_state(program, state)
    elif accelerator.is_main_process:
        clear(output)
    while True:
        if accelerator.is_main_process and program.history[0]:
            row = program.history[0][-1]
            if program.best_epoch[0] == program.epoch or not (output / "best").is_dir():
                save_best(program, 0, data.source, output / "best")
            write_history(program.history[0], output / "history.jsonl.partial")
            on_epoch(row)
        accelerator.wait_for_everyone()
        if program.finished:
            break
        program.run_epoch()
        if accelerator.is_main_process:
            save_state(program, state)
    report = test_reports(program, data)[0]
    if accelerator.is_main_process:
        # A run that was killed between its state and this folder left an older one.
        save_best(program, 0, data.source, output / "best")
        write_report(output, report)
        plot_curves(program.history[0], condition, output / "curves.png")
        (output / "history.jsonl.partial").replace(output / "history.jsonl")
    accelerator.wait_for_everyone()
    return report


def build_program(
    conditions: Sequence[Condition],
    data: Data,
    settings: Settings,
    accelerator: Accelerator,
    together: bool = True,
) -> Program:
    """A program for conditions of one group, on the splits `train` and `val`."""
    first = conditions[0]
    poolings = None
    if settings.train_pooling:
        poolings = [data.source.layer_pooling() for _ in conditions]
    return Program(
        conditions,
        shape_of(data.source.model_config(), first.task, first.shared),
        data["train"].samples(first.mode, first.task),
        data["val"].samples(first.mode, first.task),
        settings,
        accelerator,
        poolings,
        together,
    )


def test_reports(program: Program, data: Data) -> list[dict[str, Any]]:
    """Test metrics of every condition's best model, in the form of `metrics.json`."""
    import torch

    first = program.conditions[0]
    split = data["test"]
    samples = split.samples(first.mode, first.task)
    features = torch.as_tensor(samples.features).to(program.accelerator.device)
    stack = program.best_stack()
    ranks = program.rank, program.world
    scores = predict(stack, features, program.accelerator.reduce, *ranks).double().numpy()
    means = song_means(scores, samples.song)
    labels = split.labels.astype(np.float64)
    return [
        {
            "mode": condition.mode,
            "task": condition.task,
            "loss": condition.loss,
            "shared": condition.shared,
            "n_songs": len(labels),
            "metrics": head_metrics(means[:, i], labels, stack.shape.heads),
        }
        for i, condition in enumerate(program.conditions)
    ]


def save_best(program: Program, index: int, source: EmbeddingSource, folder: Path) -> None:
    """Write one condition's best model as a folder that `score --model` loads."""
    stack: PredictorStack = program.best_stack()
    condition = program.conditions[index]
    predictor = stack.shape.predictor()
    predictor.load_state_dict(stack.state_of(index))
    pooling = source.layer_pooling()
    trained = stack.pooling_of(index)
    if trained is not None:
        state = pooling.state_dict()
        state["weight"], state["bias"] = trained[0].view_as(state["weight"]), trained[1]
        pooling.load_state_dict(state)
    config = source.model_config()
    config.task, config.shared = condition.task, condition.shared
    config.trunk_widths = list(stack.shape.trunk_widths)
    # A saved mix may name heads that this task lacks, and was fitted to other heads anyway.
    config.mix = config.preference = None
    training = {
        "mode": condition.mode,
        "loss": condition.loss,
        "seed": condition.seed,
        "epoch": program.best_epoch[index],
        "val_loss": program.best_loss[index],
    }
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_predictor(temporary, config, predictor, pooling)
    write_text(temporary / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def write_history(rows: Sequence[HistoryRow], path: Path) -> None:
    """A row per epoch as JSON lines, whole."""
    write_text(path, "".join(json_line(row) for row in rows))


def clear(output: Path) -> None:
    """Take away what an earlier run left: a folder holds one run's results."""
    shutil.rmtree(output / "best", ignore_errors=True)
    files = ("history.jsonl.partial", "history.jsonl", "metrics.json", "curves.png", STATE_FILE)
    for name in files:
        (output / name).unlink(missing_ok=True)
