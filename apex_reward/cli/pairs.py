"""`apex-reward pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import (
    OK,
    SOME_FAILED,
    VOTES,
    FiguresOption,
    add_command,
    figure_formats,
    print_table,
    progress_bar,
)
from apex_reward.cli.pair_options import PairChoices
from apex_reward.cli.progress import kept_rows, resumable
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.pairs.build import PairSet
    from apex_reward.pairs.options import PairOptions
    from apex_reward.rewards.reward import Reward

Format = Literal["folder", "trl", "kto", "tangoflux", "jkstep"]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    add_command(app, pairs, panel=VOTES)


def pairs(
    candidates: Annotated[
        Path,
        typer.Argument(
            help="Scored candidates: .jsonl, .csv, .parquet, or a data set that save_to_disk left."
        ),
    ],
    choices: PairChoices,
    asked: given.RewardOptions,
    running: given.RunOptions,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to write; needed without --dry-run."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Layout for a trainer.")] = "folder",
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Make the folder of trl or kto a data set on the hub."),
    ] = None,
    figures: FiguresOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the songs that a stopped run scored.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be dropped; write nothing.")
    ] = False,
) -> int:
    """Make preference pairs from scored candidates, every drop accounted for.

    Example: apex-reward pairs scores.jsonl --axis musicality --min-margin 0.2 --output pairs
    """
    from apex_reward.files.stamps import read_provenance
    from apex_reward.pairs.hub import FORMS as PUSHED
    from apex_reward.pairs.reading import read_candidates
    from apex_reward.rewards.provenance import provenance

    formats = figure_formats(figures)
    if push_to_hub and form not in PUSHED:
        raise UsageError(f"--push-to-hub needs --format {' or '.join(PUSHED)}")
    if output is None and not dry_run:
        raise UsageError("give --output DIR, or --dry-run to see what would be dropped")
    options = choices.options()
    table = read_candidates(candidates, None if dry_run or output is None else output / "songs")
    made_by = read_provenance(candidates)
    if asked.given:
        reward = given.build_reward(asked, running)
        kept = None if dry_run or output is None else output / "scored.jsonl"
        table = _scored(table, options, reward, running.processes, candidates.parent, kept, resume)
        made_by = provenance(reward)
    elif asked != given.RewardOptions():
        raise UsageError("--mix, --loudness, --guards and --caution need --model or --reward")
    result = _built(table, options, candidates.parent)
    _print_counts(result)
    if output is not None and not dry_run:
        _written(result, output, candidates.parent, form, made_by, formats, push_to_hub)
    return _exit_code(result, scored=asked.given)


def _scored(
    table: pa.Table,
    options: PairOptions,
    reward: Reward,
    workers: int,
    folder: Path,
    kept: Path | None,
    resume: bool,
) -> pa.Table:
    """The table with its gaps scored; the rows grow in `kept`."""
    from apex_reward.pairs.unscored import score_unscored

    kept_so_far = kept_rows(kept) if kept else lambda: ""
    with resumable(kept_so_far), progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        return score_unscored(
            table,
            options.involved,
            reward,
            folder,
            workers=workers,
            on_row=lambda done, total: bar.update(task, completed=done, total=total),
            agreement=options.min_agreement is not None,
            kept=kept,
            resume=resume,
        )


def _built(table: pa.Table, options: PairOptions, folder: Path) -> PairSet:
    from apex_reward.pairs.build import build

    with progress_bar() as bar:
        task = bar.add_task("prompts", total=None)
        return build(
            table,
            options,
            folder,
            lambda done, total: bar.update(task, completed=done, total=total),
        )


def _written(
    result: PairSet,
    output: Path,
    folder: Path,
    form: str,
    made_by: dict[str, Any] | None,
    formats: Sequence[str],
    repo: str | None,
) -> None:
    from apex_reward.pairs.export import write_folder
    from apex_reward.pairs.hub import push_folder
    from apex_reward.pairs.report import write_report

    write_folder(result, output, form, folder, made_by)
    write_report(result, output, folder, formats)
    typer.echo(f"{output}: {len(result.chosen)} pairs; listen to them in report.html")
    if repo is not None:
        typer.echo(f"pushed to {push_folder(output / form, repo)}")


def _print_counts(result: PairSet) -> None:
    from apex_reward.pairs.export import summary

    counts = summary(result)
    rows: list[tuple[Any, ...]] = [("candidates", "read", counts["n_candidates"])]
    rows += [("candidates", why, -n) for why, n in counts["dropped_candidates"].items()]
    rows += [("candidates", "in a pair", counts["n_candidates_paired"])]
    rows += [("pairs", "proposed", len(result.proposed[0]))]
    rows += [("pairs", why, -n) for why, n in counts["dropped_pairs"].items()]
    rows += [("pairs", "train", counts["n_train"]), ("pairs", "test", counts["n_test"])]
    print_table(f"{counts['strategy']} on {counts['axis']}", ("", "what", "number"), rows)
    if counts["n_pairs"] and result.options.test_share and not counts["n_test"]:
        typer.echo(
            "note: the test split is empty: no set of connected prompts and groups is small "
            f"enough for a share of {result.options.test_share:g}"
        )


def _exit_code(result: PairSet, scored: bool) -> int:
    """1 when this run could not read or score some audio."""
    counts = result.dropped.counts()
    failed = counts.get("unreadable audio", 0) + (counts.get("not scored", 0) if scored else 0)
    if failed:
        text = f"{failed} candidates could not be read or scored; dropped.jsonl says why"
        typer.secho(text, err=True, fg="red")
    if not len(result.chosen):
        typer.secho("no pair was made; the table says why", err=True, fg="red")
    return SOME_FAILED if failed else OK
