"""`apex-reward train`, `grid` and `evaluate`; with them `prepare` and `extract`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apex_reward.cli import data as data_commands
from apex_reward.cli.common import (
    TRAINING,
    FiguresOption,
    add_command,
    figure_formats,
    print_table,
)
from apex_reward.cli.progress import progress_updates, resumable
from apex_reward.cli.training import (
    DataOptions,
    Mode,
    OutputOption,
    ResumeOption,
    ScheduleOptions,
    TeacherFileOption,
    TrackersOption,
)
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.train.loop import HistoryRow
    from apex_reward.train.settings import Condition, TrainSettings
    from apex_reward.train.trainer import OnEpoch

MEASURES = ("mse", "mae", "pearson", "spearman")
Shared = Literal["2", "3"]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    data_commands.register(app)
    for command in (train, grid, evaluate):
        add_command(app, command, panel=TRAINING)


def train(
    data: DataOptions,
    schedule: ScheduleOptions,
    output: OutputOption,
    mode: Annotated[
        Mode, typer.Option(help="What a sample is: a song, or each of its segments.")
    ] = "song",
    task: Annotated[
        Literal["full", "popularity"], typer.Option(help="All seven heads, or the first two.")
    ] = "full",
    loss: Annotated[
        Literal["equal", "weighted", "uncertainty", "standardized"],
        typer.Option(metavar="NAME", help="equal, weighted, uncertainty or standardized."),
    ] = "uncertainty",
    shared: Annotated[Shared, typer.Option(help="Trunk layers.")] = "2",
    seed: Annotated[int, typer.Option(metavar="N", help="Reaches every random choice.")] = 42,
    tune_encoder: Annotated[
        Literal["lora"] | None, typer.Option(help="Train adapters on the encoder, from audio.")
    ] = None,
    audio_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the songs are, for --tune-encoder."),
    ] = None,
    report_to: TrackersOption = None,
    members: Annotated[
        int, typer.Option(metavar="N", help="More than 1: an ensemble of seeds from --seed on.")
    ] = 1,
    bound: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Bind finished runs into an ensemble; repeat. Trains nothing.",
        ),
    ] = None,
    figures: FiguresOption = None,
    resume: ResumeOption = False,
) -> int:
    """Train a predictor, an ensemble of them, or one with adapters on its encoder.

    On several processes: accelerate launch -m apex_reward train ...

    Example: apex-reward train --data shards --output run
    """
    from apex_reward.train.settings import Condition

    condition = Condition(loss, int(shared), mode, task, seed)
    settings = schedule.settings()
    if ((bound or tune_encoder) and members != 1) or (bound and tune_encoder):
        raise UsageError("--members, --from and --tune-encoder go one at a time")
    if bound:
        return _bind(bound, data.load(task, schedule.train_pooling), output)
    with resumable(lambda: _states(output)):
        if tune_encoder is not None:
            return _tune(data, audio_dir, output, condition, settings, resume)
        return _train(
            data, output, condition, settings, members, report_to or (), figure_formats(figures),
            resume,
        )  # fmt: skip


def _states(output: Path) -> str:
    """The epochs that an interrupted run has kept."""
    found = [output / "state.pt", output / "frozen" / "state.pt"]
    found += sorted((output / ".groups").glob("*.pt"))
    kept = [str(path) for path in found if path.is_file()]
    return f"all finished epochs, in {', '.join(kept)}" if kept else ""


def _epoch_note(row: HistoryRow) -> str:
    return f"loss {row['train_loss']:.4g}, validation {row['val_loss']:.4g}"


def _train(
    data: DataOptions,
    output: Path,
    condition: Condition,
    settings: TrainSettings,
    members: int,
    report_to: Sequence[str],
    formats: Sequence[str],
    resume: bool,
) -> int:
    from apex_reward.train.session import make_accelerator
    from apex_reward.train.settings import ensemble
    from apex_reward.train.trainer import train as run

    ensemble(condition, members)  # a wrong number is found before the data is read
    found = data.load(condition.task, settings.train_pooling)
    about = {**settings.to_dict(), **vars(condition), "members": members}
    accelerator = make_accelerator(settings.precision, report_to, output, about)
    with progress_updates() as update:

        def on_epoch(row: HistoryRow) -> None:
            update("train", row["epoch"], settings.epochs, _epoch_note(row))
            accelerator.log(row, step=int(row["epoch"]))

        report = run(
            found, condition, settings, output, accelerator=accelerator, members=members,
            resume=resume, formats=formats, on_epoch=on_epoch,
        )  # fmt: skip
    accelerator.end_training()
    if accelerator.is_main_process:
        _print_report(f"test split, {report['n_songs']} songs", report)
    return 0


def _bind(runs: Sequence[Path], data: Any, output: Path) -> int:
    from apex_reward.train.bind import bind

    report = bind(runs, data, output)
    _print_report(f"test split, {report['n_songs']} songs", report)
    return 0


def _tune(
    data: DataOptions,
    audio_dir: Path | None,
    output: Path,
    condition: Condition,
    settings: TrainSettings,
    resume: bool,
) -> int:
    if audio_dir is None:
        raise UsageError("--tune-encoder trains from audio: name its folder with --audio-dir")
    from apex_reward.train.tune import tune_encoder

    with progress_updates() as update:

        def shown(name: str) -> OnEpoch:
            return lambda row: update(name, row["epoch"], settings.epochs, _epoch_note(row))

        report = tune_encoder(
            data.data, audio_dir, output, condition, settings,
            encoder=data.encoder, teacher_file=data.teacher_file, resume=resume,
            on_frozen=shown("frozen encoder"), on_epoch=shown("tune"),
            on_songs=lambda done, total: update("songs of the epoch", done, total, ""),
        )  # fmt: skip
    _print_report(f"test split, {report['n_songs']} songs", report)
    return 0


def grid(
    data: DataOptions,
    schedule: ScheduleOptions,
    output: OutputOption,
    losses: Annotated[
        str, typer.Option(metavar="A,B", help="Add standardized for the fourth loss.")
    ] = "equal,weighted,uncertainty",
    seed: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Repeat for several seeds.", show_default="42"),
    ] = None,
    report_to: TrackersOption = None,
    figures: FiguresOption = None,
    paper_data: Annotated[
        bool, typer.Option("--paper-data", help="The data is the paper's: compare the figures.")
    ] = False,
    resume: ResumeOption = False,
) -> int:
    """Train all conditions of the paper's ablation, then write its tables.

    Example: apex-reward grid --data shards --output grid
    """
    from apex_reward.train.grid import run_grid
    from apex_reward.train.session import make_accelerator
    from apex_reward.train.settings import conditions

    table = conditions(
        [name.strip() for name in losses.split(",")], list(dict.fromkeys(seed or [42]))
    )
    settings, epochs = schedule.settings(), schedule.epochs
    found = data.load("full", schedule.train_pooling)
    formats = figure_formats(figures)
    about = {**settings.to_dict(), "conditions": len(table)}
    accelerator = make_accelerator(settings.precision, report_to or (), output, about)
    groups = len({condition.group for condition in table})
    with resumable(lambda: _states(output)), progress_updates() as update:
        done: dict[str, float] = {}

        def on_epoch(group: str, epoch: int, models: int, means: HistoryRow) -> None:
            done[group] = epoch / epochs if models else 1.0
            step = list(done).index(group) * epochs + epoch  # trackers want rising steps
            accelerator.log({f"{group}/{name}": value for name, value in means.items()}, step=step)
            update("grid", sum(done.values()), groups, "groups")
            update(group, epoch if models else epochs, epochs, f"{models} models")

        run_grid(
            found, table, settings, output, accelerator=accelerator, resume=resume,
            paper_data=paper_data, formats=formats, on_epoch=on_epoch,
        )  # fmt: skip
    accelerator.end_training()
    if accelerator.is_main_process:
        typer.echo((output / "table1.md").read_text(encoding="utf-8"))
        typer.echo((output / "table2.md").read_text(encoding="utf-8"))
    return 0


def evaluate(
    checkpoint: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder of a model, or a best_model.pt.")
    ],
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="Of shards, as DIR/test.")],
    output: OutputOption,
    mode: Annotated[
        Mode | None,
        typer.Option(help="What a sample is.", show_default="as the checkpoint was trained"),
    ] = None,
    teacher_file: TeacherFileOption = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, metavar="N", help="Resamples for the intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the resamples.")] = 0,
    figures: FiguresOption = None,
) -> int:
    """Measure a checkpoint on a split: errors, correlations, intervals, examples.

    Example: apex-reward evaluate --checkpoint run/best --data shards/test --output figures
    """
    from apex_reward.data.teacher import read_teacher
    from apex_reward.train.evaluate import evaluate_checkpoint
    from apex_reward.train.session import make_accelerator

    formats = figure_formats(figures)
    accelerator = make_accelerator()
    report = evaluate_checkpoint(
        checkpoint, data, output, mode=mode,
        teacher=read_teacher(teacher_file) if teacher_file else None, bootstrap=bootstrap,
        seed=seed, accelerator=accelerator, formats=formats,
    )  # fmt: skip
    if accelerator.is_main_process:
        _print_report(f"{data}, {report['n_songs']} songs, {report['mode']} mode", report)
    return 0


def _print_report(title: str, report: dict[str, Any]) -> None:
    rows = [[head, *(row[m] for m in MEASURES)] for head, row in report["metrics"].items()]
    print_table(title, ["head", *MEASURES], rows)
    if "spread" not in report:
        return
    columns = ["head", "mse of a member", "spread's spearman", "covered"]
    print_table(
        f"{report['members']} members: does their spread tell the error?",
        columns,
        [
            [head, report["member_metrics"][head]["mse"], row["spearman"], row["coverage"]]
            for head, row in report["spread"].items()
        ],
    )
