"""Train one predictor or an ensemble: the flow of `apex-reward train`, from data to a folder.

Shape key: N = songs, M = models, H = heads.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apex_reward.errors import UsageError
from apex_reward.files.atomic import atomic
from apex_reward.files.growing import GrowingTable
from apex_reward.files.tables import write_json
from apex_reward.model.checkpoint import save_predictor
from apex_reward.model.predictor import Familiarity, LayerPooling, Predictor, PredictorEnsemble
from apex_reward.train.card import write_trained_card
from apex_reward.train.dataset import Data
from apex_reward.train.evaluate import TRAINING_FILE
from apex_reward.train.familiar import fit_familiarity
from apex_reward.train.loop import HistoryRow, Loop
from apex_reward.train.plots import plot_curves
from apex_reward.train.program import Program
from apex_reward.train.report import (
    FloatArray,
    fit_spread_scale,
    metrics_report,
    write_report,
)
from apex_reward.train.resume import run_epochs
from apex_reward.train.settings import Condition, TrainSettings, ensemble
from apex_reward.train.split import Split, song_means
from apex_reward.train.stack import PredictorStack, shape_of
from apex_reward.train.steps import predict

if TYPE_CHECKING:
    from accelerate import Accelerator

    from apex_reward.model.config import ApexConfig

STATE_FILE = "state.pt"
OnEpoch = Callable[[HistoryRow], None]


def train(
    data: Data,
    condition: Condition,
    settings: TrainSettings,
    output: Path,
    *,
    accelerator: Accelerator,
    members: int = 1,
    resume: bool = False,
    formats: Sequence[str] = (),
    on_epoch: OnEpoch = lambda row: None,
) -> dict[str, Any]:
    """Train one model and leave its folder.

    Writes `best/` (loads with `ApexReward.from_pretrained`), `history.jsonl` (a row per epoch, of
    an ensemble a row per epoch and `member`; it grows as `history.jsonl.partial`), `curves.png`,
    `metrics.json` (on the test split) and `state.pt`, from which `resume` goes on with the same
    bytes as a run that was never stopped.

    Args:
        data: train, val and test splits; with layer embeddings where the pooling trains.
        accelerator: device, precision, processes and trackers (already initialised).
        members: with more than one, an ensemble: seeds from `condition.seed` on, each member on
            its own bootstrap draw of whole songs, each stopping by itself.
        formats: of the curves, beside PNG.
        on_epoch: called with each new row of the history, on the main process; of an ensemble with
            the mean of the members that still train.

    Returns:
        The content of `metrics.json`; for an ensemble see `apex_reward.train.report`.

    Raises:
        UsageError: fewer than one member, or several where the layer pooling trains.
    """
    table = ensemble(condition, members)
    if members > 1:
        if settings.train_pooling:
            raise UsageError(
                "an ensemble shares its layer pooling; train the pooling with one member, extract "
                "with that model as --encoder, and train the members on those shards"
            )
        settings = replace(settings, bootstrap=True)
    program = build_program(table, data, settings, accelerator)
    everyone, best = range(members), output / "best"
    with run_history(program, output) as history:
        for _ in followed(program, history, resume, on_epoch):
            improved = any(program.best_epoch[i] == program.epoch for i in everyone)
            if improved or not best.is_dir():
                save_best(program, everyone, data, best)
        scale = spread_scale(program, data["val"]) if members > 1 else None
        scores, labels = split_scores(program, data["test"]), _labels(program, data["test"])
        report = metrics_report(about(table), scores, labels, program.stack.shape.heads, scale)
        if accelerator.is_main_process:
            save_best(program, everyone, data, best, scale, familiarity(program, data))
            write_trained_card(best, data, report, [("seed", condition.seed)])
            finish_run(program, history, report, formats)
        accelerator.wait_for_everyone()
    return report


@contextmanager
def run_history(loop: Loop, output: Path) -> Iterator[GrowingTable]:
    """The history of a run, held by the main process against a second run in the same folder."""
    history = GrowingTable(output / "history.jsonl")
    with history.locked() if loop.rank == 0 else nullcontext():
        yield history


def followed(loop: Loop, history: GrowingTable, resume: bool, on_epoch: OnEpoch) -> Iterator[None]:
    """Run a loop's epochs; the history grows. Yields on the main process, to save.

    A run that was killed may have left an older model than its state is: its last epoch is yielded
    again.
    """
    output = history.path.parent
    state = output / STATE_FILE
    if loop.rank == 0:
        if not (resume and state.is_file()):
            clear(output)
        history.start()
    written = 0
    for _ in run_epochs(loop, state, resume):
        if loop.rank == 0:
            rows = history_rows(loop)
            history.append(rows[written:])
            written = len(rows)
            yield
            on_epoch(mean_row(loop))


def finish_run(
    loop: Loop, history: GrowingTable, report: dict[str, Any], formats: Sequence[str] = ()
) -> None:
    """Write the report and the curves; the history gets its name last."""
    output = history.path.parent
    write_report(output, report)
    kinds = tuple(dict.fromkeys(("png", *formats)))
    plot_curves(loop.history, loop.conditions, output / "curves.png", kinds)
    history.finish()


def build_program(
    conditions: Sequence[Condition],
    data: Data,
    settings: TrainSettings,
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
    split = data["test"]
    scores, labels = split_scores(program, split), _labels(program, split)
    return [
        metrics_report(about([condition]), scores[:, i : i + 1], labels, program.stack.shape.heads)
        for i, condition in enumerate(program.conditions)
    ]


def about(conditions: Sequence[Condition]) -> dict[str, Any]:
    """What `metrics.json` says of models that are alike but for loss and seed."""
    first = conditions[0]
    return {"mode": first.mode, "task": first.task, "loss": first.loss, "shared": first.shared}


def split_scores(program: Program, split: Split) -> FloatArray:
    """(N, M, H) predictions of a split's songs by every condition's best model."""
    first = program.conditions[0]
    samples = split.samples(first.mode, first.task)
    features = torch.as_tensor(samples.features).to(program.accelerator.device)
    ranks = program.rank, program.world
    scores = predict(program.best_stack(), features, program.accelerator.reduce, *ranks)
    return song_means(scores.double().numpy(), samples.song, samples.weight)


def spread_scale(program: Program, split: Split) -> list[float]:
    """The scale of the spread of the best models, fitted on a split that none trained on."""
    return fit_spread_scale(split_scores(program, split), _labels(program, split))


def _labels(program: Program, split: Split) -> FloatArray:
    return split.labels[:, : len(program.stack.shape.heads)].astype("float64")


def familiarity(program: Program, data: Data, index: int = 0) -> Familiarity | None:
    """Statistics of the training songs' embeddings, pooled as a condition's best model does."""
    trained = program.best_stack().pooling_of(index)
    if trained is None:
        return data.familiarity
    layers = torch.as_tensor(data["train"].samples("song", "popularity").features).float()
    with torch.no_grad():
        return fit_familiarity(pooling_with(trained)(layers).numpy())


def pooling_with(trained: tuple[torch.Tensor, torch.Tensor]) -> LayerPooling:
    """A layer pooling of given (L,) weights and (1,) bias."""
    pooling = LayerPooling(len(trained[0]))
    pooling.load_state_dict({"weight": trained[0].view(1, -1, 1), "bias": trained[1]})
    return pooling


def save_best(
    program: Program,
    chosen: Sequence[int],
    data: Data,
    folder: Path,
    scale: Sequence[float] | None = None,
    familiar: Familiarity | None = None,
) -> None:
    """Write the best models of the chosen conditions as a folder that `score --model` loads.

    Args:
        chosen: one condition, or an ensemble's.
        scale: of an ensemble's spread, and `familiar`: both known once training is done.
    """
    stack: PredictorStack = program.best_stack()
    predictors = [_predictor(stack, index) for index in chosen]
    trained = stack.pooling_of(chosen[0])
    pooling = data.source.layer_pooling() if trained is None else pooling_with(trained)
    config = config_of(data, program.conditions[chosen[0]], stack)
    config.spread_scale = None if scale is None else list(scale)
    notes = [
        {
            "loss": program.conditions[index].loss,
            "seed": program.conditions[index].seed,
            "epoch": program.best_epoch[index],
            "val_loss": program.best_loss[index],
        }
        for index in chosen
    ]
    save_members(folder, config, predictors, pooling, familiar, program.conditions[0].mode, notes)


def save_members(
    folder: Path,
    config: ApexConfig,
    predictors: Sequence[Predictor],
    pooling: LayerPooling,
    familiar: Familiarity | None,
    mode: str,
    notes: Sequence[dict[str, Any]],
) -> None:
    """Write one predictor, or several as an ensemble, with what is known of their training."""
    training = {"mode": mode, **notes[0]}
    if len(notes) > 1:
        losses = {note["loss"] for note in notes}
        loss = losses.pop() if len(losses) == 1 else "mixed"
        training = {"mode": mode, "loss": loss, "members": list(notes)}
    whole = predictors[0] if len(predictors) == 1 else PredictorEnsemble(predictors)
    with atomic(folder) as temporary:
        save_predictor(temporary, config, whole, pooling, familiar)
        write_json(temporary / TRAINING_FILE, training)


def _predictor(stack: PredictorStack, index: int) -> Predictor:
    predictor = stack.shape.predictor()
    predictor.load_state_dict(stack.state_of(index))
    return predictor


def config_of(data: Data, condition: Condition, stack: PredictorStack) -> ApexConfig:
    """The configuration of a trained model: the embeddings' with the predictor's shape."""
    config = data.source.model_config()
    config.task, config.shared = condition.task, condition.shared
    config.trunk_widths = list(stack.shape.trunk_widths)
    # A saved mix may name heads that this task lacks, and was fitted to other heads anyway.
    config.mix = config.preference = None
    return config


def mean_row(loop: Loop) -> HistoryRow:
    """The means of the last epoch's rows, over the models that were in it."""
    rows = [rows[-1] for rows in loop.history if rows and rows[-1]["epoch"] == loop.epoch]
    if len(rows) == 1:
        return rows[0]
    row: HistoryRow = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    return {**row, "epoch": loop.epoch}


def history_rows(loop: Loop) -> list[HistoryRow]:
    """A row per epoch, of several models with `member`."""
    if len(loop.history) == 1:
        return loop.history[0]
    rows = [({"member": i, **row}) for i, rows in enumerate(loop.history) for row in rows]
    return sorted(rows, key=lambda row: (row["epoch"], row["member"]))


def clear(output: Path) -> None:
    """Take away what an earlier run left: a folder holds one run's results."""
    shutil.rmtree(output / "best", ignore_errors=True)
    files = (STATE_FILE, "history.jsonl.partial", "history.jsonl", "metrics.json", "curves.png")
    for name in files:
        (output / name).unlink(missing_ok=True)
