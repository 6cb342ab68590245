"""Train one predictor or an ensemble: the flow of `apex-reward train`, from data to a folder."""

from __future__ import annotations

import copy
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from apex_reward.errors import UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.stamps import Stamp
from apex_reward.report.charts import draw_curves
from apex_reward.train.evaluate import Checkpoint, finish_checkpoint, training_notes
from apex_reward.train.loop import HistoryRow, Loop, SampleLoop, Training, run_epochs, shaped
from apex_reward.train.report import write_report
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data

OnEpoch = Callable[[HistoryRow], None]


def train(
    data: Data,
    settings: TrainSettings,
    output: Path,
    *,
    accelerator: Accelerator,
    resume: bool = False,
    on_epoch: OnEpoch = lambda row: None,
) -> dict[str, Any]:
    """Train one model, or an ensemble, and leave its folder.

    Writes `best/` (loads with `ApexReward.from_pretrained`), `history.jsonl` (a row per epoch, of
    an ensemble a row per epoch and `member`; it grows as `history.jsonl.partial`), `curves.png`,
    `metrics.json` (on the split test) and `state.pt`, from which `resume` goes on with the same
    bytes as a run that was never stopped. `best/` and `state.pt` are written every few seconds.

    The members of an ensemble differ in their seed: initial weights, dropout, the order of the
    samples and, in each epoch, the samples that they train on (`loop.MEMBER_SHARE`). Each stops
    by itself.

    Args:
        data: the splits train, val and test; with layer embeddings where the pooling trains.
        accelerator: device, precision, processes and trackers (already initialised).
        on_epoch: called with each new row of the history, on the main process; of an ensemble with
            the mean of the members that still train.

    Returns:
        The content of `metrics.json`; see `apex_reward.train.report`.

    Raises:
        UsageError: several members where the layer pooling trains.
    """
    if settings.members > 1 and settings.train_pooling:
        raise UsageError(
            "an ensemble shares its layer pooling; train the pooling with one member, extract "
            "with that model as --encoder, and train the members on those shards"
        )
    loops = [sample_loop(data, one, accelerator) for one in settings.each()]
    stamp = run_stamp(data, settings)
    with run_history(loops, output) as history:
        for _ in followed(loops, history, stamp, resume, on_epoch):
            checkpoint_of(loops, data).save(output / "best")
        whole, seed = checkpoint_of(loops, data), [("seed", settings.seed)]
        report = finish_checkpoint(whole, data, output / "best", seed, accelerator)
        if accelerator.is_main_process:
            finish_run(loops, history, report)
        accelerator.wait_for_everyone()
    return report


def make_accelerator(
    precision: str = "no",
    report_to: Sequence[Any] | None = None,
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
    folder, trackers = None if output is None else str(output), list(report_to or ())
    try:
        accelerator = Accelerator(
            mixed_precision=precision, log_with=trackers or None, project_dir=folder
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    if trackers and not accelerator.log_with:
        raise UsageError(
            f"--report-to {','.join(map(str, trackers))}: not installed here; install the "
            "tracker's package, or leave it out"
        )
    if trackers:
        accelerator.init_trackers("apex-reward", config=settings or {})
    return accelerator


def sample_loop(
    data: Data, settings: TrainSettings, accelerator: Accelerator, together: bool = True
) -> SampleLoop:
    """The loop of one run on the splits train and val."""
    train, val = (data[name].samples(settings.mode, settings.task) for name in ("train", "val"))
    pooling = data.source.layer_pooling() if settings.train_pooling else None
    config = data.source.model_config()
    return SampleLoop(settings, config, train, val, accelerator, pooling, together)


def run_stamp(data: Data, settings: TrainSettings, files: Sequence[str] | None = None) -> Stamp:
    """What a run's result depends on: the settings, the data, other files that it reads."""
    return Stamp({**settings.to_dict(), "data": data.digest}, files)


def checkpoint_of(loops: Sequence[Loop], data: Data) -> Checkpoint:
    """The best predictors of loops of one shape, as one checkpoint."""
    settings, pooling = loops[0].settings, data.source.layer_pooling()
    predictors, notes = [], []
    for loop in loops:
        with loop.at_best() as network:
            best = copy.deepcopy(network).cpu()
        predictors.append(best.predictor)
        pooling = best.pooling or pooling
        chosen = loop.history[loop.best_epoch - 1]
        kept = {key: chosen[key] for key in ("epoch", "val_loss", "val_error")}
        notes.append({"loss": loop.settings.loss, "seed": loop.settings.seed, **kept})
    config = shaped(data.source.model_config(), settings)
    training = training_notes(settings.mode, data.source, notes)
    return Checkpoint(config, predictors, pooling, training)


@contextmanager
def run_history(loops: Sequence[Training], output: Path) -> Iterator[GrowingTable]:
    """The history of a run, held by the main process against a second run in the same folder."""
    history = GrowingTable(output / "history.jsonl")
    with history.locked() if loops[0].rank == 0 else nullcontext():
        yield history


def followed(
    loops: Sequence[Training],
    history: GrowingTable,
    stamp: Stamp,
    resume: bool,
    on_epoch: OnEpoch,
) -> Iterator[None]:
    """Run the loops' epochs; the history grows. Yields on the main process when to save.

    A new run removes what an earlier one left: a folder holds one run's results.
    """
    output, main, written = history.path.parent, loops[0].rank == 0, 0
    state = output / "state.pt"
    if main and not (resume and state.is_file()):
        shutil.rmtree(output / "best", ignore_errors=True)
        for name in ("history.jsonl.partial", "history.jsonl", "metrics.json", "curves.png"):
            (output / name).unlink(missing_ok=True)
    if main:
        history.start()
    for saved in run_epochs(loops, state, stamp, resume):
        if not main:
            continue
        rows = history_rows(loops)
        history.append(rows[written:])
        written = len(rows)
        if saved:
            yield
        on_epoch(mean_row(loops, max(loop.epoch for loop in loops)))


def finish_run(loops: Sequence[Loop], history: GrowingTable, report: dict[str, Any]) -> None:
    """Write the report and the curves; the history gets its name last."""
    write_report(history.path.parent, report)
    epochs = range(1, max(loop.epoch for loop in loops) + 1)
    rows = [{**mean_row(loops, epoch), "step": epoch} for epoch in epochs]
    panels = {"loss": ["train_loss", "val_loss"], "validation error": ["val_error"]}
    if loops[0].settings.loss == "uncertainty":
        panels["learned sigma"] = [name for name in rows[0] if name.startswith("sigma_")]
    draw_curves(rows, panels, history.path.with_name("curves"), xlabel="epoch")
    history.finish()


def mean_row(loops: Sequence[Training], epoch: int) -> HistoryRow:
    """The means of an epoch's rows, over the models that trained in it."""
    rows = [loop.history[epoch - 1] for loop in loops if loop.epoch >= epoch]
    if len(rows) == 1:
        return rows[0]
    row: HistoryRow = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    return {**row, "epoch": epoch}


def history_rows(loops: Sequence[Training]) -> list[HistoryRow]:
    """A row per epoch, of several models with `member`."""
    if len(loops) == 1:
        return loops[0].history
    rows = [{"member": i, **row} for i, loop in enumerate(loops) for row in loop.history]
    return sorted(rows, key=lambda row: (row["epoch"], row["member"]))
