"""`apex-reward train`, `grid` and `evaluate`; with them `prepare` and `extract`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apex_reward.cli import data as data_commands
from apex_reward.cli.common import print_table, reports_errors
from apex_reward.cli.progress import progress_updates, resumable
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.train.loop import HistoryRow
    from apex_reward.train.settings import Condition, Settings
    from apex_reward.train.trainer import OnEpoch

MEASURES = ("mse", "mae", "pearson", "spearman")

DataFolder = Annotated[Path, typer.Option("--data", help="Folder with train/, val/ and test/.")]
Output = Annotated[Path, typer.Option(help="Folder for the results.")]
Epochs = Annotated[int, typer.Option(help="Length of the cosine annealing.")]
BatchSize = Annotated[int, typer.Option(help="Samples per process and step.")]
Lr = Annotated[float, typer.Option(help="First learning rate of AdamW.")]
WeightDecay = Annotated[float, typer.Option(help="Weight decay of AdamW.")]
Patience = Annotated[int, typer.Option(help="Epochs without a better validation loss to stop.")]
Precision = Annotated[str, typer.Option(help="no (float32), bf16 or fp16.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")]
TrainPooling = Annotated[
    bool, typer.Option("--train-pooling", help="Train the layer pooling (needs layer_embeddings).")
]
Encoder = Annotated[
    str | None,
    typer.Option(help="What made the embeddings, where the shards do not say: folder or hub id."),
]
SongEval = Annotated[
    Path | None,
    typer.Option("--songeval", help="Aesthetic labels per song (.csv, .jsonl, .parquet)."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    data_commands.register(app)
    for command in (train, grid, evaluate):
        app.command()(reports_errors(command))


def train(
    data: DataFolder,
    output: Output,
    mode: Annotated[str, typer.Option(help="song or segment.")] = "song",
    task: Annotated[str, typer.Option(help="full or popularity.")] = "full",
    loss: Annotated[
        str, typer.Option(help="equal, weighted, uncertainty or standardized.")
    ] = "uncertainty",
    shared: Annotated[int, typer.Option(help="Trunk layers, 2 or 3.")] = 2,
    epochs: Epochs = 50,
    batch_size: BatchSize = 512,
    lr: Lr = 1e-4,
    weight_decay: WeightDecay = 1e-4,
    patience: Patience = 20,
    seed: Annotated[int, typer.Option(help="Reaches every random choice.")] = 42,
    precision: Precision = "no",
    train_pooling: TrainPooling = False,
    encoder: Encoder = None,
    songeval: SongEval = None,
    tune_encoder: Annotated[
        str | None, typer.Option(help="lora: train adapters on the encoder, from audio.")
    ] = None,
    audio_dir: Annotated[
        Path | None, typer.Option(help="Where the songs are, for --tune-encoder.")
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="Trackers of accelerate: tensorboard, wandb, ...")
    ] = None,
    members: Annotated[
        int, typer.Option(help="More than 1: an ensemble of seeds from --seed on.")
    ] = 1,
    bound: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Bind finished runs into an ensemble; repeat. Trains nothing."),
    ] = None,
    resume: Resume = False,
) -> int:
    """Train a predictor. Several processes: accelerate launch -m apex_reward train ..."""
    from apex_reward.train.settings import Condition, Settings

    condition = Condition(loss, shared, mode, task, seed)
    settings = Settings(
        epochs, batch_size, lr, weight_decay, patience, precision, train_pooling=train_pooling
    )
    source = _Source(data, task, train_pooling, encoder, songeval)
    if ((bound or tune_encoder) and members != 1) or (bound and tune_encoder):
        raise UsageError("--members, --from and --tune-encoder go one at a time")
    if bound:
        return _bind(bound, source, output)
    with resumable(lambda: _states(output)):
        if tune_encoder is not None:
            return _tune(tune_encoder, source, audio_dir, output, condition, settings, resume)
        return _train(source, output, condition, settings, members, report_to or (), resume)


@dataclass(frozen=True)
class _Source:
    """Where the training data comes from."""

    folder: Path
    task: str
    layers: bool
    encoder: str | None
    songeval: Path | None

    def load(self) -> Any:
        from apex_reward.train.session import load_training_data

        return load_training_data(
            self.folder, self.task, layers=self.layers, encoder=self.encoder,
            songeval=self.songeval,
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
    source: _Source,
    output: Path,
    condition: Condition,
    settings: Settings,
    members: int,
    report_to: Sequence[str],
    resume: bool,
) -> int:
    from apex_reward.train.session import make_accelerator
    from apex_reward.train.settings import ensemble
    from apex_reward.train.trainer import train as run

    ensemble(condition, members)  # a wrong number is found before the data is read
    found = source.load()
    about = {**settings.to_dict(), **vars(condition), "members": members}
    accelerator = make_accelerator(settings.precision, report_to, output, about)
    with progress_updates() as update:

        def on_epoch(row: HistoryRow) -> None:
            update("train", row["epoch"], settings.epochs, _epoch_note(row))
            accelerator.log(row, step=int(row["epoch"]))

        report = run(
            found, condition, settings, output, accelerator=accelerator, members=members,
            resume=resume, on_epoch=on_epoch,
        )  # fmt: skip
    accelerator.end_training()
    if accelerator.is_main_process:
        _print_report(f"test split, {report['n_songs']} songs", report)
    return 0


def _bind(runs: Sequence[Path], source: _Source, output: Path) -> int:
    from apex_reward.train.bind import bind

    report = bind(runs, source.load(), output)
    _print_report(f"test split, {report['n_songs']} songs", report)
    return 0


def _tune(
    method: str,
    source: _Source,
    audio_dir: Path | None,
    output: Path,
    condition: Condition,
    settings: Settings,
    resume: bool,
) -> int:
    if method != "lora":
        raise UsageError(f"--tune-encoder is {method!r}; expected 'lora'")
    if audio_dir is None:
        raise UsageError("--tune-encoder trains from audio: name its folder with --audio-dir")
    from apex_reward.train.tune import tune_encoder

    with progress_updates() as update:

        def shown(name: str) -> OnEpoch:
            return lambda row: update(name, row["epoch"], settings.epochs, _epoch_note(row))

        report = tune_encoder(
            source.folder, audio_dir, output, condition, settings,
            encoder=source.encoder, songeval=source.songeval, resume=resume,
            on_frozen=shown("frozen encoder"), on_epoch=shown("tune"),
            on_songs=lambda done, total: update("songs of the epoch", done, total, ""),
        )  # fmt: skip
    _print_report(f"test split, {report['n_songs']} songs", report)
    return 0


def grid(
    data: DataFolder,
    output: Output,
    losses: Annotated[
        str, typer.Option(help="Comma-separated; add standardized for the fourth loss.")
    ] = "equal,weighted,uncertainty",
    seed: Annotated[list[int] | None, typer.Option(help="Repeat for several seeds.")] = None,
    epochs: Epochs = 50,
    batch_size: BatchSize = 512,
    lr: Lr = 1e-4,
    weight_decay: WeightDecay = 1e-4,
    patience: Patience = 20,
    precision: Precision = "no",
    train_pooling: TrainPooling = False,
    encoder: Encoder = None,
    songeval: SongEval = None,
    paper_data: Annotated[
        bool, typer.Option("--paper-data", help="The data is the paper's: compare the figures.")
    ] = False,
    resume: Resume = False,
) -> int:
    """Train all conditions of the paper's ablation, then write its tables."""
    from apex_reward.train.grid import run_grid
    from apex_reward.train.session import load_training_data, make_accelerator
    from apex_reward.train.settings import Settings, conditions

    table = conditions(
        [name.strip() for name in losses.split(",")], list(dict.fromkeys(seed or [42]))
    )
    settings = Settings(
        epochs, batch_size, lr, weight_decay, patience, precision, train_pooling=train_pooling
    )
    found = load_training_data(
        data, "full", layers=train_pooling, encoder=encoder, songeval=songeval
    )
    accelerator = make_accelerator(precision)
    groups = len({condition.group for condition in table})
    with resumable(lambda: _states(output)), progress_updates() as update:
        done: dict[str, float] = {}

        def on_epoch(group: str, epoch: int, models: int) -> None:
            done[group] = epoch / epochs if models else 1.0
            update("grid", sum(done.values()), groups, "groups")
            update(group, epoch if models else epochs, epochs, f"{models} models")

        run_grid(
            found, table, settings, output, accelerator=accelerator, resume=resume,
            paper_data=paper_data, on_epoch=on_epoch,
        )  # fmt: skip
    if accelerator.is_main_process:
        typer.echo((output / "table1.md").read_text(encoding="utf-8"))
        typer.echo((output / "table2.md").read_text(encoding="utf-8"))
    return 0


def evaluate(
    checkpoint: Annotated[str, typer.Option(help="Folder of a model, or a best_model.pt.")],
    data: Annotated[Path, typer.Option(help="Folder of shards, as DIR/test.")],
    output: Output,
    mode: Annotated[
        str | None, typer.Option(help="song or segment; None: as the checkpoint was trained.")
    ] = None,
    songeval: SongEval = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
) -> int:
    """Measure a checkpoint on a split: errors, correlations, intervals, examples."""
    from apex_reward.data.teacher import read_teacher
    from apex_reward.train.evaluate import evaluate as run
    from apex_reward.train.session import make_accelerator

    accelerator = make_accelerator()
    report = run(
        checkpoint, data, output, mode=mode, teacher=read_teacher(songeval) if songeval else None,
        bootstrap=bootstrap, seed=seed, accelerator=accelerator,
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
