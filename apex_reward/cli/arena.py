"""`apex-reward arena`: score battles, evaluate, calibrate and rank against human votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apex_reward.arena import BattleFilter
from apex_reward.cli import common, rewards
from apex_reward.errors import UsageError
from apex_reward.report.cells import counted

if TYPE_CHECKING:
    from apex_reward.model import ApexReward


@dataclass(frozen=True)
class VoteOptions(BattleFilter):
    """Which battles.

    Args:
        table: scores of another model, joined by battle_uuid; NAME goes before its columns. Repeat
            it for more.
    """

    table: Annotated[list[str], "[NAME=]FILE"] = field(default_factory=list)


@dataclass(frozen=True)
class FigureOptions:
    """Figures.

    Args:
        score: score with columns NAME_a and NAME_b; repeat it for more. None: every score.
        output: folder for metrics.json and the report.
        figures: write the plots as files too: pdf, svg, png.
        seed: random seed of resampling, folds and draws.
        bootstrap: bootstrap rounds.
    """

    score: Annotated[list[str] | None, "NAME"] = None
    output: common.Folder | None = None
    figures: common.Figures = ()
    seed: int = 0
    bootstrap: Annotated[int, (1, None)] = 1000


@dataclass(frozen=True)
class CurveOptions:
    """Learning curve.

    Args:
        anchors: numbers of votes.
        test_size: test battles of each draw.
        repeats: seeded draws.
    """

    anchors: Annotated[Sequence[int], "0,10,100"] = ()
    test_size: Annotated[int, (1, None)] = 299
    repeats: Annotated[int, (1, None)] = 5


def score(
    battles: str,
    /,
    asked: rewards.RewardOptions,
    running: rewards.EngineOptions,
    *,
    output: common.File,
    audio_dir: Annotated[Path | None, "FOLDER"] = None,
    rulers: bool = False,
    resume: bool = False,
) -> int:
    """Score both songs of every battle; a song that fails is a row with its reason.

    Example: apex-reward arena score battles.csv --model apex-tiny --output scored.csv

    Args:
        battles: votes: a .csv, .jsonl or .parquet table, a Music Arena folder, or its hub id.
        output: battles with scores: .csv, .jsonl or .parquet.
        audio_dir: folder that the songs' paths are relative to. None: the battles' own.
        rulers: add plain measures of each song, such as length and loudness.
        resume: keep the songs that a stopped run scored.
    """
    from apex_reward import Reward, load_reward_model
    from apex_reward.arena.score import score_battles, song_paths, songs_table
    from apex_reward.arena.sources import read_rows
    from apex_reward.files import tables

    tables.check_format(output)
    tables.check_output(output, [battles])
    rows, folder, _ = read_rows(battles, audio=True)
    paths = song_paths(rows, audio_dir or folder)
    engine, workers = running.engine_and_workers()
    judge = rewards.build_reward(asked, running)
    measures = Reward(load_reward_model("rulers")) if rulers else None
    total = len({path for pair in paths for path in pair if path}) * (1 + rulers)
    kept = common.kept_rows(songs_table(output))
    with common.resumable(kept), common.counting("songs", total) as step:
        scored, failures = score_battles(
            rows, paths, output, judge, rulers=measures, rewarded=asked.rewarded, workers=workers,
            engine=engine, resume=resume, on_song=step,
        )  # fmt: skip
    if engine.share.first:
        typer.echo(f"{counted(len(rows), 'battle')}, {counted(scored, 'song')} -> {output}")
    return engine.ended(common.show_failures(failures))


def evaluate(
    battles: str,
    /,
    votes: VoteOptions,
    figures: FigureOptions,
    by: Annotated[list[str] | None, "COLUMN"] = None,
    classifiers: bool = False,
) -> None:
    """Measure how far scores agree with people: accuracy, AUC, intervals, baselines.

    Example: apex-reward arena evaluate scored.csv --score musicality --output report

    Args:
        battles: votes: a .csv, .jsonl or .parquet table, a Music Arena folder, or its hub id.
        by: figures per value of a column; repeat it for more.
        classifiers: the paper's five classifiers on the seven heads.
    """
    from apex_reward.arena import agreement, protocol, report, sources, voters
    from apex_reward.arena.battles import battles_of

    rows, dropped = sources.load_rows(battles, keep=votes, tables=votes.table)
    found = battles_of(rows, scores=figures.score, by=by or (), dropped=dropped)
    metrics = agreement.evaluate_battles(found, bootstrap=figures.bootstrap, seed=figures.seed)
    if agreed := voters.voter_agreement(rows):
        metrics["voters"] = agreed
    if classifiers:
        steps = len(protocol.CLASSIFIERS) * len(protocol.SECTIONS)
        with common.counting("classifiers", steps) as step:
            everything = battles_of(rows, dropped=dropped)
            metrics["classifiers"] = protocol.run_protocol(everything, progress=step)
    write_report = partial(report.evaluation_report, battles=Path(battles))
    summary = report.evaluation_summary
    output = _written(metrics, summary, write_report, battles, votes, figures)
    if output and classifiers:
        protocol.write_table3(metrics["classifiers"], output)


def _written(
    metrics: dict[str, Any],
    summary: Callable[[Any], Any],
    write_report: Callable[..., None],
    battles: str,
    votes: VoteOptions,
    figures: FigureOptions,
) -> Path | None:
    """Print the summary; with an output folder, write `metrics.json` and the report there."""
    from apex_reward.arena.sources import provenance
    from apex_reward.files.tables import write_json
    from apex_reward.report.document import print_blocks

    print_blocks(summary(metrics))
    metrics["provenance"] = provenance(battles, votes.table)
    if figures.output is not None:
        write_json(figures.output / "metrics.json", metrics)
        write_report(metrics, figures.output, formats=figures.figures)
        typer.echo(f"{figures.output / 'metrics.json'}, report.html, report.md")
    return figures.output


def calibrate(
    battles: str,
    /,
    votes: VoteOptions,
    figures: FigureOptions,
    curve: CurveOptions,
    embeddings: Annotated[Path | None, "FILE"] = None,
    attach: Annotated[str | None, "MODEL"] = None,
) -> None:
    """Fit a preference head and per-system biases to votes, judged on held-out ones.

    Example: apex-reward arena calibrate scored.csv --score musicality --output calibrated

    Args:
        battles: votes: a .csv, .jsonl or .parquet table, a Music Arena folder, or its hub id.
        embeddings: song embeddings: rows battle_uuid, side, vector.
        attach: model to save in OUTPUT/model with the mix `preference`.
    """
    from apex_reward.arena import calibration, report, sources
    from apex_reward.arena.battles import RULERS
    from apex_reward.files.tables import write_json
    from apex_reward.model.card import write_card
    from apex_reward.rewards.load import without_bars

    if attach is not None and figures.output is None:
        raise UsageError("--attach needs --output DIR, where the model is saved")
    found = sources.load_battles(battles, scores=figures.score, keep=votes, tables=votes.table)
    names = figures.score or [name for name in found.scores if not name.startswith(RULERS)]
    if figures.score is None and len(names) != 1:
        raise UsageError(f"name what to calibrate with --score; here: {', '.join(names) or 'none'}")
    model = None if attach is None else _attachable(attach, names)
    vectors = None if embeddings is None else sources.load_embeddings(embeddings, found)
    metrics, head, design = calibration.calibrate(
        found, names, embeddings=vectors, bootstrap=figures.bootstrap, seed=figures.seed
    )
    width = len(head.embedding_weights or ())
    if model is not None and width not in (0, model.config.width):
        raise UsageError(
            f"--attach {attach}: its embeddings have the width {model.config.width}; those of "
            f"--embeddings have {width}"
        )
    if curve.anchors:
        learned = calibration.learning_curve(design, **vars(curve), seed=figures.seed)
        metrics["calibration"]["learning_curve"] = learned
    parts = report.calibration_summary, report.calibration_report
    if output := _written(metrics, *parts, battles, votes, figures):
        write_json(output / "preference.json", head.to_dict())
        typer.echo(f"{output / 'preference.json'}: the calibrated preference")
        if model is not None:
            folder = output / "model"
            model.config.preference = head.to_dict()
            with without_bars():
                model.save_pretrained(folder)
            write_card(folder, report.calibration_parts(metrics), attach or "")
            typer.echo(f"{folder}: score with --model {folder} --mix preference")


def _attachable(name: str, heads: Sequence[str]) -> ApexReward:
    """The model that gets a preference head over these heads."""
    from apex_reward import ApexReward, load_reward_model

    model = load_reward_model(name, device="cpu")
    if not isinstance(model, ApexReward):
        raise UsageError(f"--attach {name}: only an APEX model holds a preference head")
    known = model.config.head_names
    if foreign := [head for head in heads if head not in known]:
        text = f"{', '.join(foreign)} is not a head of a model with {', '.join(known)}"
        raise UsageError(f"--attach {name}: {text}")
    return model


def leaderboard(battles: str, /, votes: VoteOptions, figures: FigureOptions) -> None:
    """Rank systems by votes, and by any score.

    Example: apex-reward arena leaderboard scored.csv --score musicality --output board

    Args:
        battles: votes: a .csv, .jsonl or .parquet table, a Music Arena folder, or its hub id.
    """
    from apex_reward.arena import report, sources
    from apex_reward.arena.leaderboard import leaderboards
    from apex_reward.files.tables import write_table

    names = figures.score or ()
    found = sources.load_battles(battles, scores=names, keep=votes, tables=votes.table)
    metrics = leaderboards(found, names, bootstrap=figures.bootstrap, seed=figures.seed)
    parts = report.leaderboard_summary, report.leaderboard_report
    if output := _written(metrics, *parts, battles, votes, figures):
        write_table(output / "leaderboard.csv", metrics["leaderboard"])
