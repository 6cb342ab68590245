"""`apex-reward arena`: score battles, evaluate, calibrate and rank against human votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import OK, VOTES, add_command, progress_bar, show_failures
from apex_reward.cli.progress import kept_rows, resumable
from apex_reward.cli.votes import BattlesArgument, FigureOptions, VoteOptions
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.arena.battles import Row
    from apex_reward.scores.preference import PreferenceHead

_curve = partial(typer.Option, rich_help_panel="Learning curve")


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    arena = typer.Typer(
        name="arena",
        help="Agreement with human votes: score, evaluate, calibrate, leaderboard.",
        no_args_is_help=True,
    )
    for command in (score, evaluate, calibrate, leaderboard):
        add_command(arena, command)
    app.add_typer(arena, rich_help_panel=VOTES)


def score(
    battles: BattlesArgument,
    asked: given.RewardOptions,
    running: given.EngineOptions,
    output: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Battles with scores: .csv, .jsonl or .parquet."),
    ],
    audio_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that the songs' paths are relative to.",
            show_default="the battles' own",
        ),
    ] = None,
    rulers: Annotated[
        bool,
        typer.Option("--rulers", help="Add plain measures of each song: length, loudness, ..."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the songs that a killed run scored.")
    ] = False,
) -> int:
    """Score both songs of every battle; a song that fails is a row with its reason.

    Example: apex-reward arena score battles.csv --model apex-tiny --output scored.csv
    """
    from apex_reward.arena.score import score_battles, song_paths, songs_table
    from apex_reward.arena.sources import read_rows
    from apex_reward.files.tables import check_format, check_output
    from apex_reward.rewards.load import load_reward_model
    from apex_reward.rewards.reward import Reward

    check_format(output)
    check_output(output, [battles])
    rows, folder, _ = read_rows(battles, audio=True)
    paths = song_paths(rows, audio_dir or folder)
    engine, workers = running.engine_and_workers()
    judge = given.build_reward(asked, running)
    measures = Reward(load_reward_model("rulers")) if rulers else None
    total = len({path for pair in paths for path in pair if path}) * (1 + rulers)
    with resumable(kept_rows(songs_table(output))), progress_bar() as bar:
        task = bar.add_task("songs", total=total)
        scored, failures = score_battles(
            rows,
            paths,
            output,
            judge,
            rulers=measures,
            rewarded=asked.rewarded,
            workers=workers,
            engine=engine,
            resume=resume,
            on_song=lambda row: bar.update(task, advance=1),
        )
    if engine.share.first:
        typer.echo(f"{len(rows)} battles, {scored} songs -> {output}")
    return engine.ended(show_failures(failures))


def evaluate(
    votes: VoteOptions,
    figures: FigureOptions,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Figures per value of a column; may be repeated."),
    ] = None,
    classifiers: Annotated[
        bool, typer.Option("--classifiers", help="The paper's five classifiers on the seven heads.")
    ] = False,
) -> int:
    """Measure how far scores agree with people: accuracy, AUC, intervals, baselines.

    Example: apex-reward arena evaluate scored.csv --score musicality --output report
    """
    from apex_reward.arena.agreement import evaluate_battles
    from apex_reward.arena.battles import battles_of
    from apex_reward.arena.protocol import write_table3
    from apex_reward.arena.report import evaluation_report, evaluation_summary
    from apex_reward.arena.sources import load_rows
    from apex_reward.arena.voters import voter_agreement
    from apex_reward.report.document import print_blocks

    rows, dropped = load_rows(votes.battles, keep=votes.keep, tables=votes.tables)
    battles = battles_of(rows, scores=figures.score, by=by or (), dropped=dropped)
    metrics = evaluate_battles(battles, bootstrap=figures.bootstrap, seed=figures.seed)
    voters = voter_agreement(rows, bootstrap=figures.bootstrap, seed=figures.seed)
    if voters:
        metrics["voters"] = voters
    if classifiers:
        metrics["classifiers"] = _run_classifiers(rows, dropped)
    print_blocks(evaluation_summary(metrics))
    if output := _write(metrics, votes, figures):
        evaluation_report(metrics, output, Path(votes.battles), figures.formats)
        if classifiers:
            write_table3(metrics["classifiers"], output)
        typer.echo(f"{output / 'metrics.json'}, report.html, report.md")
    return OK


def _write(metrics: dict[str, Any], votes: VoteOptions, figures: FigureOptions) -> Path | None:
    """Write `metrics.json` with what made the scores; the output folder, if there is one."""
    from apex_reward.arena.sources import provenance
    from apex_reward.files.tables import write_json

    metrics["provenance"] = provenance(votes.battles, votes.tables)
    if figures.output is not None:
        write_json(figures.output / "metrics.json", metrics)
    return figures.output


def _run_classifiers(rows: Sequence[Row], dropped: Mapping[str, int]) -> dict[str, Any]:
    from apex_reward.arena.battles import battles_of
    from apex_reward.arena.protocol import CLASSIFIERS, SECTIONS, run_protocol

    with progress_bar() as bar:
        task = bar.add_task("classifiers", total=len(CLASSIFIERS) * len(SECTIONS))

        def show(step: str) -> None:
            bar.update(task, description=step, advance=1)

        return run_protocol(battles_of(rows, dropped=dropped), progress=show)


@dataclass(frozen=True)
class CurveOptions:
    """The learning curve of a calibration."""

    anchors: Annotated[
        str | None,
        _curve(metavar="0,10,100", help="Learning curve over these numbers of votes."),
    ] = None
    test_size: Annotated[
        int,
        _curve(min=1, metavar="N", help="Test battles of the curve."),
    ] = 299
    repeats: Annotated[
        int,
        _curve(min=1, metavar="N", help="Seeded draws of the curve."),
    ] = 5

    @property
    def counts(self) -> list[int]:
        """The numbers of votes; raises UsageError where they are none."""
        try:
            return [int(part) for part in self.anchors.split(",")] if self.anchors else []
        except ValueError:
            raise UsageError(
                f"--anchors {self.anchors!r}; expected numbers, as 0,10,30,100,250"
            ) from None


def calibrate(
    votes: VoteOptions,
    figures: FigureOptions,
    curve: CurveOptions,
    embeddings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Song embeddings: rows battle_uuid, side, vector."),
    ] = None,
    attach: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Model to save in OUTPUT/model with the mix 'preference'."
        ),
    ] = None,
) -> int:
    """Fit a preference head and per-system biases to votes, judged on held-out ones.

    Example: apex-reward arena calibrate scored.csv --score musicality --output calibrated
    """
    from apex_reward.arena.battles import RULERS
    from apex_reward.arena.calibration import calibrate as fit
    from apex_reward.arena.calibration import learning_curve
    from apex_reward.arena.report import calibration_report, calibration_summary
    from apex_reward.arena.sources import load_battles, load_embeddings
    from apex_reward.files.tables import write_json
    from apex_reward.report.document import print_blocks

    if attach is not None and figures.output is None:
        raise UsageError("--attach needs --output DIR, where the model is saved")
    counts = curve.counts
    battles = load_battles(
        votes.battles, scores=figures.score, keep=votes.keep, tables=votes.tables
    )
    names = figures.score or [name for name in battles.scores if not name.startswith(RULERS)]
    if figures.score is None and len(names) != 1:
        raise UsageError(f"name what to calibrate with --score; here: {', '.join(names) or 'none'}")
    if attach is not None:
        _check_heads(names)
    vectors = None if embeddings is None else load_embeddings(embeddings, battles)
    metrics, head, design = fit(
        battles, names, embeddings=vectors, bootstrap=figures.bootstrap, seed=figures.seed
    )
    if counts:
        metrics["calibration"]["learning_curve"] = learning_curve(
            design, anchors=counts, test_size=curve.test_size, repeats=curve.repeats,
            seed=figures.seed,
        )  # fmt: skip
    print_blocks(calibration_summary(metrics))
    if output := _write(metrics, votes, figures):
        write_json(output / "preference.json", head.to_dict())
        calibration_report(metrics, output, figures.formats)
        typer.echo(f"{output / 'preference.json'}, metrics.json, report.html, report.md")
        if attach is not None:
            _attach(head, attach, output / "model", metrics)
    return OK


def _check_heads(names: Sequence[str]) -> None:
    from apex_reward.scores.apex import HEADS

    foreign = [name for name in names if name not in HEADS]
    if foreign:
        raise UsageError(f"--attach: {', '.join(foreign)} is not a head of a model")


def _attach(head: PreferenceHead, name: str, folder: Path, metrics: Mapping[str, Any]) -> None:
    """Save a model that offers the head as its mix `preference`."""
    from apex_reward.arena.report import calibration_parts
    from apex_reward.model import ApexReward
    from apex_reward.model.card import write_card
    from apex_reward.rewards.load import load_reward_model, without_bars

    model = load_reward_model(name, device="cpu")
    if not isinstance(model, ApexReward):
        raise UsageError(f"--attach {name}: only an APEX model holds a preference head")
    absent = [weight for weight in head.weights if weight not in model.config.head_names]
    width = len(head.embedding_weights or ())
    if absent or width not in (0, model.config.width):
        raise UsageError(
            f"--attach {name}: the preference head needs {', '.join(head.weights)} and embeddings "
            f"of width {width}; the model has {', '.join(model.config.head_names)} and "
            f"{model.config.width}"
        )
    model.config.preference = head.to_dict()
    with without_bars():
        model.save_pretrained(folder)
    write_card(folder, calibration_parts(metrics), name)
    typer.echo(f"{folder}: score with --model {folder} --mix preference")


def leaderboard(votes: VoteOptions, figures: FigureOptions) -> int:
    """Rank systems by votes, and by any score.

    Example: apex-reward arena leaderboard scored.csv --score musicality --output board
    """
    from apex_reward.arena.leaderboard import leaderboards
    from apex_reward.arena.report import leaderboard_report, leaderboard_summary
    from apex_reward.arena.sources import load_battles
    from apex_reward.files.tables import write_table
    from apex_reward.report.document import print_blocks

    names = figures.score or ()
    battles = load_battles(votes.battles, scores=names, keep=votes.keep, tables=votes.tables)
    metrics = leaderboards(battles, names, bootstrap=figures.bootstrap, seed=figures.seed)
    print_blocks(leaderboard_summary(metrics))
    if output := _write(metrics, votes, figures):
        write_table(output / "leaderboard.csv", metrics["leaderboard"])
        for name, part in metrics["scores"].items():
            write_table(output / f"leaderboard_{name}.csv", part["leaderboard"])
        leaderboard_report(metrics, output, figures.formats)
        typer.echo(f"{output / 'leaderboard.csv'}, metrics.json, report.html, report.md")
    return OK
