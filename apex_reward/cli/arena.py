"""`apex-reward arena`: score battles, evaluate, calibrate and rank against human votes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.arena_tables import print_calibration, print_evaluation
from apex_reward.cli.common import OK, SOME_FAILED, print_table, progress_bar, reports_errors
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.arena.sources import BattleFilter
    from apex_reward.scores.preference import PreferenceHead

SHOWN_FAILURES = 10

BattlesArgument = Annotated[
    str,
    typer.Argument(
        metavar="BATTLES",
        help="Votes: a .csv, .jsonl or .parquet table, a Music Arena folder, or its hub id.",
    ),
]
ScoreOption = Annotated[
    list[str] | None, typer.Option("--score", help="Score NAME with columns NAME_a, NAME_b.")
]
OutputOption = Annotated[Path | None, typer.Option(help="Folder for metrics.json and the report.")]
TableOption = Annotated[
    list[Path] | None,
    typer.Option("--table", help="Scores of another model, joined by battle_uuid."),
]
SeedOption = Annotated[int, typer.Option(help="Of resampling, folds and draws.")]
RoundsOption = Annotated[int, typer.Option("--bootstrap", min=1, help="Bootstrap rounds.")]
MonthsOption = Annotated[
    int | None, typer.Option(min=1, help="Only the newest N calendar months of battles.")
]
AudioOption = Annotated[
    bool, typer.Option("--with-audio", help="Only battles whose two songs are there.")
]
ListeningOption = Annotated[
    float | None, typer.Option(help="Only battles whose songs were each heard this many seconds.")
]
BinaryOption = Annotated[bool, typer.Option("--binary", help="Only votes for A or B.")]
PrebakedOption = Annotated[
    bool, typer.Option("--no-prebaked", help="Leave out battles on the Arena's own prompts.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    arena = typer.Typer(
        name="arena",
        help="Agreement with human votes: score, evaluate, calibrate, leaderboard.",
        no_args_is_help=True,
    )
    for name, command in (
        ("score", score),
        ("evaluate", evaluate),
        ("calibrate", calibrate),
        ("leaderboard", leaderboard),
    ):
        arena.command(name)(reports_errors(command))
    app.add_typer(arena)


def evaluate(
    battles: BattlesArgument,
    score: ScoreOption = None,
    output: OutputOption = None,
    classifiers: Annotated[
        bool, typer.Option("--classifiers", help="The paper's five classifiers on the seven heads.")
    ] = False,
    seed: SeedOption = 0,
    bootstrap: RoundsOption = 1000,
    table: TableOption = None,
    last_months: MonthsOption = None,
    with_audio: AudioOption = False,
    min_listening: ListeningOption = None,
    no_prebaked: PrebakedOption = False,
    binary: BinaryOption = False,
) -> int:
    """Does a score agree with people? Accuracy, AUC, intervals, direction, baselines."""
    from apex_reward.arena.agreement import evaluate as measure
    from apex_reward.arena.battles import battles_of
    from apex_reward.arena.load import load_rows, provenance
    from apex_reward.arena.report import evaluation_report
    from apex_reward.arena.table3 import write_table3
    from apex_reward.files.tables import write_json

    keep = _filter(last_months, with_audio, min_listening, no_prebaked, binary)
    rows, dropped = load_rows(battles, keep=keep, tables=table or ())
    metrics = measure(battles_of(rows, scores=score, dropped=dropped), rounds=bootstrap, seed=seed)
    metrics["provenance"] = provenance(battles, table or ())
    if classifiers:
        metrics["classifiers"] = _run_classifiers(rows, dropped)
    print_evaluation(metrics)
    if output is not None:
        write_json(output / "metrics.json", metrics)
        evaluation_report(metrics, output, Path(battles))
        if classifiers:
            write_table3(metrics["classifiers"], output)
        typer.echo(f"{output / 'metrics.json'}, report.html, report.md")
    return OK


def calibrate(
    battles: BattlesArgument,
    score: ScoreOption = None,
    output: OutputOption = None,
    anchors: Annotated[
        str | None, typer.Option(help="Learning curve over these numbers of votes: 0,10,100.")
    ] = None,
    test_size: Annotated[int, typer.Option(min=1, help="Test battles of the curve.")] = 299,
    repeats: Annotated[int, typer.Option(min=1, help="Seeded draws of the curve.")] = 5,
    embeddings: Annotated[
        Path | None, typer.Option(help="Song embeddings: rows battle_uuid, side, vector.")
    ] = None,
    attach: Annotated[
        str | None, typer.Option(help="Model to save in OUTPUT/model with the mix 'preference'.")
    ] = None,
    seed: SeedOption = 0,
    bootstrap: RoundsOption = 1000,
    table: TableOption = None,
    last_months: MonthsOption = None,
    with_audio: AudioOption = False,
    min_listening: ListeningOption = None,
    no_prebaked: PrebakedOption = False,
    binary: BinaryOption = False,
) -> int:
    """Fit a preference head and per-system biases to votes; judge them on held-out votes."""
    from apex_reward.arena.anchors import learning_curve
    from apex_reward.arena.heldout import calibrate as fit
    from apex_reward.arena.load import load_battles, load_embeddings, provenance
    from apex_reward.arena.report import calibration_report
    from apex_reward.files.tables import write_json

    counts = _counts(anchors)
    if attach is not None and output is None:
        raise UsageError("--attach needs --output DIR, where the model is saved")
    keep = _filter(last_months, with_audio, min_listening, no_prebaked, binary)
    votes = load_battles(battles, scores=score, keep=keep, tables=table or ())
    names = list(votes.scores)
    if score is None and len(names) != 1:
        raise UsageError(f"name what to calibrate with --score; here: {', '.join(names) or 'none'}")
    if attach is not None:
        _check_heads(names)
    vectors = None if embeddings is None else load_embeddings(embeddings, votes)
    metrics, head, design = fit(votes, names, embeddings=vectors, rounds=bootstrap, seed=seed)
    if counts:
        metrics["calibration"]["learning_curve"] = learning_curve(
            design, anchors=counts, test_size=test_size, repeats=repeats, seed=seed
        )
    metrics["provenance"] = provenance(battles, table or ())
    print_calibration(metrics["calibration"])
    if output is not None:
        write_json(output / "metrics.json", metrics)
        write_json(output / "preference.json", head.to_dict())
        calibration_report(metrics, output)
        typer.echo(f"{output / 'preference.json'}, metrics.json, report.html, report.md")
        if attach is not None:
            _attach(head, attach, output / "model", metrics)
    return OK


def leaderboard(
    battles: BattlesArgument,
    score: ScoreOption = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    bootstrap: RoundsOption = 1000,
    table: TableOption = None,
    last_months: MonthsOption = None,
    with_audio: AudioOption = False,
    min_listening: ListeningOption = None,
    no_prebaked: PrebakedOption = False,
    binary: BinaryOption = False,
) -> int:
    """Arena scores of systems from votes, and from any score."""
    from apex_reward.arena.leaderboard import leaderboards
    from apex_reward.arena.load import load_battles, provenance
    from apex_reward.arena.report import leaderboard_report, rank_correlation_words
    from apex_reward.files.tables import write_json, write_table

    keep = _filter(last_months, with_audio, min_listening, no_prebaked, binary)
    votes = load_battles(battles, scores=score or (), keep=keep, tables=table or ())
    metrics = leaderboards(votes, score or (), rounds=bootstrap, seed=seed)
    metrics["provenance"] = provenance(battles, table or ())
    boards = {"leaderboard": metrics["leaderboard"]}
    for name, part in metrics["scores"].items():
        boards[f"leaderboard_{name}"] = part["leaderboard"]
    for title, board in boards.items():
        print_table(title, list(board[0]), [list(row.values()) for row in board])
    for part in metrics["scores"].values():
        typer.echo(rank_correlation_words(part))
    if output is not None:
        write_json(output / "metrics.json", metrics)
        for title, board in boards.items():
            write_table(output / f"{title}.csv", board)
        leaderboard_report(metrics, output)
        typer.echo(f"{output / 'leaderboard.csv'}, metrics.json, report.html, report.md")
    return OK


def score(
    battles: BattlesArgument,
    output: Annotated[Path, typer.Option(help="Battles with scores: .csv, .jsonl or .parquet.")],
    audio_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that the songs' paths start from; default: the battles' own."),
    ] = None,
    model: given.ModelOption = None,
    reward: given.RewardOption = None,
    mix: given.MixOption = None,
    loudness: given.LoudnessOption = None,
    guards: given.GuardsOption = None,
    caution: given.CautionOption = None,
    encoder: given.EncoderOption = None,
    segment_tail: given.TailOption = None,
    batch_segments: given.BatchOption = None,
    workers: given.WorkersOption = None,
    engine: given.EngineOption = given.EngineName.local,
    device: given.DeviceOption = None,
    dtype: given.DTypeOption = given.DType.float32,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the songs that a killed run scored.")
    ] = False,
) -> int:
    """Score both songs of every battle; a song that fails is a row with its reason.

    Example: apex-reward arena score battles.csv --model apex-tiny --output scored.csv
    """
    from apex_reward.arena.score import score_battles, song_paths
    from apex_reward.arena.sources import read_rows
    from apex_reward.files.tables import check_format

    check_format(output)
    rows, folder, _ = read_rows(battles, audio=True)
    paths = song_paths(rows, audio_dir or folder)
    options = given.RewardOptions(
        model, reward, mix, loudness, guards, caution, encoder, segment_tail, batch_segments,
        device, dtype,
    )  # fmt: skip
    who, count = given.engine_of(engine, workers, device)
    judge = given.build_reward(options)
    total = len({path for pair in paths for path in pair if path})
    with progress_bar() as bar:
        task = bar.add_task("songs", total=total)
        scored, failures = score_battles(
            rows,
            paths,
            output,
            judge,
            rewarded=options.rewarded,
            workers=count,
            engine=who,
            resume=resume,
            on_song=lambda row: bar.update(task, advance=1),
        )
    if who.share.first:
        typer.echo(f"{len(rows)} battles, {scored} songs -> {output}")
    for line in failures[:SHOWN_FAILURES]:
        typer.secho(line, err=True, fg="red")
    if len(failures) > SHOWN_FAILURES:
        typer.secho(f"and {len(failures) - SHOWN_FAILURES} more", err=True, fg="red")
    return SOME_FAILED if failures else OK


def _filter(
    last_months: int | None,
    with_audio: bool,
    min_listening: float | None,
    no_prebaked: bool,
    binary: bool,
) -> BattleFilter:
    from apex_reward.arena.sources import BattleFilter

    return BattleFilter(
        last_months=last_months,
        binary=binary,
        audio=with_audio,
        min_listening=min_listening,
        prebaked=not no_prebaked,
    )


def _counts(text: str | None) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(f"--anchors {text!r}; expected numbers, as 0,10,30,100,250") from None


def _run_classifiers(rows: list[Any], dropped: dict[str, int]) -> dict[str, Any]:
    from apex_reward.arena.battles import battles_of
    from apex_reward.arena.classifiers import CLASSIFIERS, SECTIONS, run_protocol

    with progress_bar() as bar:
        task = bar.add_task("classifiers", total=len(CLASSIFIERS) * len(SECTIONS))

        def show(step: str) -> None:
            bar.update(task, description=step, advance=1)

        return run_protocol(battles_of(rows, dropped=dropped), progress=show)


def _check_heads(names: Sequence[str]) -> None:
    from apex_reward.scores.apex import HEADS

    foreign = [name for name in names if name not in HEADS]
    if foreign:
        raise UsageError(f"--attach: {', '.join(foreign)} is not a head of a model")


def _attach(head: PreferenceHead, name: str, folder: Path, metrics: dict[str, Any]) -> None:
    """Save a model that offers the head as its mix `preference`."""
    from apex_reward.arena.card import calibration_parts
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
