"""`apex-reward train`, `grid` and `evaluate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apex_reward.cli import common
from apex_reward.cli.rewards import RunOptions
from apex_reward.errors import UsageError
from apex_reward.train.settings import PAPER_LOSSES, DistillSettings, Schedule, TrainSettings

if TYPE_CHECKING:
    from apex_reward.train.loop import HistoryRow

MEASURES = ("mse", "mae", "pearson", "spearman")


@dataclass(frozen=True)
class DataOptions:
    """Training data.

    Args:
        data: Folder with train/, val/ and test/.
        songeval: Table of aesthetic labels per song (.csv, .jsonl or .parquet), in place of the
            shards' own.
    """

    data: Annotated[Path, "FOLDER"]
    songeval: Annotated[Path | None, "FILE"] = None

    def load(self, task: str, layers: bool) -> Any:
        """The training data of a task, with layer embeddings where they are asked for."""
        from apex_reward.train.shards import load_training_data

        return load_training_data(self.data, task, layers=layers, teacher_file=self.songeval)


def train(
    data: DataOptions,
    settings: TrainSettings,
    output: common.Folder,
    tune_encoder: Literal["lora"] | None = None,
    audio_dir: Annotated[Path | None, "FOLDER"] = None,
    report_to: Annotated[list[str] | None, "NAME"] = None,
    bound: Annotated[list[Path] | None, "RUN", "--from"] = None,
    resume: bool = False,
) -> None:
    """Train a predictor, an ensemble of them, or one with adapters on its encoder.

    On several processes: accelerate launch -m apex_reward train ...

    Example: apex-reward train --data shards --output run

    Args:
        output: Folder for the results.
        tune_encoder: Train adapters on the encoder too, from audio.
        audio_dir: Folder of the songs, for --tune-encoder.
        report_to: Trackers of accelerate, such as tensorboard and wandb; repeat.
        bound: Bind finished runs into an ensemble; repeat. Trains nothing.
        resume: Continue a run that was stopped.
    """
    if ((bound or tune_encoder) and settings.members != 1) or (bound and tune_encoder):
        raise UsageError("--members, --from and --tune-encoder go one at a time")
    if tune_encoder and audio_dir is None:
        raise UsageError("--tune-encoder trains from audio: name its folder with --audio-dir")
    if bound:
        from apex_reward.train.evaluate import bind

        return _show_report(bind(bound, data.load(settings.task, settings.train_pooling), output))
    from apex_reward.train import trainer

    with common.resumable(lambda: _states(output)), common.progress() as update:

        def shown(name: str, row: HistoryRow) -> None:
            note = f"loss {row['train_loss']:.4g}, validation error {row['val_error']:.4g}"
            update(name, row["epoch"], settings.epochs, note)

        def logged(row: HistoryRow) -> None:
            shown("train", row)
            accelerator.log(row, step=int(row["epoch"]))

        if audio_dir is not None and tune_encoder:
            from apex_reward.train.tune import tune_encoder as tune

            report = tune(
                data.data, audio_dir, output, settings,
                teacher_file=data.songeval, resume=resume,
                on_frozen=partial(shown, "frozen encoder"), on_epoch=partial(shown, "tune"),
                on_songs=partial(update, "songs of the epoch"),
            )  # fmt: skip
            return _show_report(report)
        found = data.load(settings.task, settings.train_pooling)
        about = vars(settings)
        accelerator = trainer.make_accelerator(settings.precision, report_to, output, about)
        report = trainer.train(
            found, settings, output, accelerator=accelerator, resume=resume, on_epoch=logged
        )  # fmt: skip
        accelerator.end_training()
    if accelerator.is_main_process:
        _show_report(report)


def _states(output: Path) -> str:
    """The states that an interrupted run has kept."""
    found = [output / "state.pt", output / "frozen" / "state.pt"]
    found += sorted((output / ".runs").glob("*.pt"))
    kept = [str(path) for path in found if path.is_file()]
    return f"the epochs up to the last state, in {', '.join(kept)}" if kept else ""


def grid(
    data: DataOptions,
    schedule: Schedule,
    output: common.Folder,
    losses: Sequence[str] = PAPER_LOSSES,
    seed: list[int] = [42],  # noqa: B006
    report_to: Annotated[list[str] | None, "NAME"] = None,
    figures: common.Figures = (),
    paper_data: bool = False,
    resume: bool = False,
) -> None:
    """Train all conditions of the paper's ablation, then write its tables.

    Every condition selects its epoch by the paper's rule, val_loss.

    Example: apex-reward grid --data shards --output grid

    Args:
        output: Folder for the results.
        losses: Losses of the conditions; standardized is the fourth.
        seed: Random seed; repeat for several.
        report_to: Trackers of accelerate, such as tensorboard and wandb; repeat.
        paper_data: Compare the figures with the paper's; the data is the paper's.
        resume: Continue a run that was stopped.
        figures: Write the plots as files too: pdf, svg, png.
    """
    from apex_reward.train.grid import run_grid
    from apex_reward.train.settings import conditions
    from apex_reward.train.trainer import make_accelerator

    runs = conditions(losses, list(dict.fromkeys(seed)), schedule)
    found = data.load("full", schedule.train_pooling)
    about = {**vars(schedule), "runs": len(runs)}
    accelerator = make_accelerator(schedule.precision, report_to, output, about)
    with common.resumable(lambda: _states(output)), common.progress() as update:
        done: dict[str, float] = {}

        def on_epoch(name: str, row: HistoryRow | None) -> None:
            epoch = schedule.epochs if row is None else int(row["epoch"])
            done.setdefault(name, 0.0)
            if row is not None:
                step = (len(done) - 1) * schedule.epochs + epoch  # trackers want rising steps
                accelerator.log({f"{name}/{key}": v for key, v in row.items()}, step=step)
            update("grid", len(done), len(runs), f"{name}, epoch {epoch}")

        run_grid(
            found, runs, output, accelerator=accelerator, resume=resume, paper_data=paper_data,
            formats=figures, on_epoch=on_epoch,
        )  # fmt: skip
    accelerator.end_training()
    for name in ("table1.md", "table2.md") if accelerator.is_main_process else ():
        typer.echo((output / name).read_text(encoding="utf-8"))


def evaluate(
    checkpoint: Annotated[str, "MODEL"],
    data: Annotated[Path, "FOLDER"],
    output: common.Folder,
    songeval: Annotated[Path | None, "FILE"] = None,
    bootstrap: Annotated[int, (0, None)] = 1000,
    seed: int = 0,
    figures: common.Figures = (),
) -> None:
    """Measure a checkpoint on a split: errors, correlations, intervals, examples.

    Example: apex-reward evaluate --checkpoint run/best --data shards/test --output figures

    Args:
        checkpoint: Folder of a model, or a best_model.pt.
        data: Folder of shards, such as DIR/test.
        output: Folder for the results.
        songeval: Table of aesthetic labels per song, in place of the shards' own.
        bootstrap: Number of resamples for the intervals.
        seed: Random seed of the resamples.
        figures: Write the plots as files too: pdf, svg, png.
    """
    from apex_reward.data.teacher import read_teacher
    from apex_reward.train.evaluate import evaluate_checkpoint
    from apex_reward.train.trainer import make_accelerator

    accelerator = make_accelerator()
    teacher = read_teacher(songeval) if songeval else None
    report = evaluate_checkpoint(
        checkpoint, data, output, teacher=teacher, bootstrap=bootstrap, seed=seed,
        accelerator=accelerator, formats=figures,
    )  # fmt: skip
    accelerator.end_training()
    if accelerator.is_main_process:
        _show_report(report, str(data))


def distill(
    *,
    teacher: Annotated[str, "MODEL|FILE"],
    audio_dir: Annotated[Path, "FOLDER"],
    settings: DistillSettings,
    running: RunOptions,
    output: common.Folder,
    resume: bool = False,
) -> int:
    """Train a small, fast student that predicts the heads of a teacher.

    Example: apex-reward distill --teacher apex-tiny --audio-dir songs --output fast

    Args:
        teacher: a model, as --model takes it, or a reward file (.yaml).
        audio_dir: folder with songs, searched recursively.
        output: folder for the student. --model takes it.
        resume: continue a run that was stopped.
    """
    from apex_reward import Reward, load_reward_model
    from apex_reward.scoring.inputs import find_audio
    from apex_reward.train import distill as distillation
    from apex_reward.train.trainer import make_accelerator

    accelerator = make_accelerator()
    if teacher.endswith((".yaml", ".yml")):
        reward = Reward.load(teacher, device=running.device)
    else:
        reward = distillation.teacher_reward(load_reward_model(teacher, device=running.device))
    reward.batch_segments = running.batch_segments
    songs = sorted(find_audio([audio_dir]))
    kept = f"the shards, in {output / 'shards'}"
    with common.resumable(lambda: kept), common.progress() as update:

        def on_epoch(row: HistoryRow) -> None:
            note = f"spearman {row['val_spearman']:.3f}"
            update("epochs", row["epoch"], settings.epochs, note)

        report = distillation.distill(
            reward, songs, settings, output, accelerator=accelerator, resume=resume,
            on_song=partial(update, "songs"), on_epoch=on_epoch,
        )  # fmt: skip
    accelerator.end_training()
    if not accelerator.is_main_process:
        return 0
    heads = report["heads"].items()
    rows = [[head, _with_interval(row["spearman"], row["ci95"])] for head, row in heads]
    title = "held-out clips: rank correlation with the teacher"
    common.print_table(title, ["head", "spearman"], rows)
    if report["failed"]:
        common.show(f"{report['failed']} songs failed; see failed.jsonl", "red")
    return common.SOME_FAILED if report["failed"] else common.OK


def _show_report(report: dict[str, Any], split: str = "test split") -> None:
    """Print the measures with their intervals, and warn of small splits on stderr."""
    title = f"{split}, {report['n_songs']} songs, {report['mode']} mode; 95% intervals"
    rows = [
        [head, *(_with_interval(row[m], report["ci95"][head][m]) for m in MEASURES)]
        for head, row in report["metrics"].items()
    ]
    common.print_table(title, ["head", *MEASURES], rows)
    common.show_warnings(report)
    if "spread" in report:
        columns = ["head", "mse of a member", "spread's spearman", "covered"]
        spreads = [
            [head, report["member_metrics"][head]["mse"], row["spearman"], row["coverage"]]
            for head, row in report["spread"].items()
        ]
        title = f"{report['members']} members: does their spread tell the error?"
        common.print_table(title, columns, spreads)


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    """A figure with its interval, as `0.61 [0.40, 0.77]`; a dash where nothing is known."""
    if math.isnan(value):
        return "-"
    low, high = interval
    ends = "[unknown]" if math.isnan(low) else f"[{low:.3g}, {high:.3g}]"
    return f"{value:.3g} {ends}"
