"""`apex-reward pairs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apex_reward.cli.common import (
    OK,
    SOME_FAILED,
    VOTES,
    Figures,
    Folder,
    add_command,
    figure_formats,
    kept_rows,
    print_table,
    progress_bar,
    resumable,
    show,
)
from apex_reward.cli.rewards import (
    CascadeOptions,
    RewardOptions,
    RunOptions,
    build_reward,
    show_lost,
)
from apex_reward.errors import UsageError
from apex_reward.pairs.options import PairOptions
from apex_reward.report.cells import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.pairs.build import PairSet
    from apex_reward.rewards.reward import Reward


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, pairs, panel=VOTES)


def pairs(
    candidates: Path,
    /,
    choices: PairOptions,
    asked: RewardOptions,
    faster: CascadeOptions,
    running: RunOptions,
    output: Folder | None = None,
    form: Annotated[Literal["folder", "trl", "kto", "tangoflux", "jkstep"], "--format"] = "folder",
    push_to_hub: Annotated[str | None, "REPO"] = None,
    figures: Figures = None,
    resume: bool = False,
    dry_run: bool = False,
) -> int:
    """Make preference pairs from scored candidates, every drop accounted for.

    Example: apex-reward pairs scores.jsonl --axis musicality --min-margin 0.2 --output pairs

    Args:
        candidates: scored candidates: .jsonl, .csv, .parquet, or a folder of `save_to_disk`.
        output: folder to write. It is needed without --dry-run.
        form: layout for a trainer.
        push_to_hub: make the folder of trl or kto a data set on the hub.
        figures: write the plots as files too: pdf, svg, png.
        resume: keep the songs that a stopped run scored.
        dry_run: print the table of drops and write nothing.
    """
    from apex_reward.files.stamps import read_provenance
    from apex_reward.files.tables import check_output
    from apex_reward.pairs.build import build
    from apex_reward.pairs.candidates import read_candidates
    from apex_reward.pairs.export import FORMS as PUSHED
    from apex_reward.pairs.export import push_folder, summary, write_folder
    from apex_reward.pairs.report import write_report
    from apex_reward.rewards.saved import provenance

    formats, folder = figure_formats(figures), candidates.parent
    if push_to_hub and form not in PUSHED:
        raise UsageError(f"--push-to-hub needs --format {' or '.join(PUSHED)}")
    if output is None and not dry_run:
        raise UsageError("give --output FOLDER, or --dry-run to print the table of drops")
    if (asked != RewardOptions() or faster.cascade) and not asked.given:
        raise UsageError(
            "--mix, --loudness, --guards, --caution and --cascade need --model or --reward"
        )
    target = None if dry_run else output
    written = ["pairs.parquet", "pairs.jsonl", "dropped.jsonl", *["scored.jsonl"] * asked.given]
    if target is not None:
        for name in written:
            check_output(target / name, [candidates])
    table = read_candidates(candidates, None if target is None else target / "songs")
    made_by = read_provenance(candidates)
    if asked.given:
        reward = build_reward(asked, running, faster)
        named = next((n for n in ("prompt_id", "prompt") if n in table.column_names), None)
        show_lost(reward, table[named].to_pylist() if named else None, len(table))
        kept = None if target is None else target / "scored.jsonl"
        table = _scored(table, choices, reward, running.processes, folder, kept, resume)
        made_by = provenance(reward)
    with progress_bar() as bar:
        task = bar.add_task("prompts", total=None)
        result = build(
            table, choices, folder, lambda done, n: bar.update(task, completed=done, total=n)
        )
    _print_counts(result, summary(result), form)
    if target is not None:
        write_folder(result, target, form, folder, made_by)
        write_report(result, target, folder, formats)
        typer.echo(
            f"{target}: {counted(len(result.chosen), 'pair')}; listen to them in report.html"
        )
        if push_to_hub is not None:
            typer.echo(f"pushed to {push_folder(target / form, push_to_hub)}")
    return _exit_code(result, scored=asked.given)


def _scored(
    table: pa.Table, options: PairOptions, reward: Reward, workers: int, folder: Path,
    kept: Path | None, resume: bool,
) -> pa.Table:  # fmt: skip
    """The table with its gaps scored; the rows grow in `kept`."""
    from apex_reward.pairs.unscored import score_unscored

    kept_so_far = kept_rows(kept) if kept else lambda: ""
    rulers = [*options.balance, *(f"rulers.{name}" for name in options.balance)]
    with resumable(kept_so_far), progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        return score_unscored(
            table, [*options.involved, *rulers], reward, folder, workers=workers,
            on_row=lambda done, total: bar.update(task, completed=done, total=total),
            agreement=options.min_agreement is not None, kept=kept, resume=resume,
        )  # fmt: skip


def _print_counts(result: PairSet, counts: dict[str, Any], form: str) -> None:
    rows: list[tuple[Any, ...]] = [("candidates", "read", counts["n_candidates"])]
    rows += [
        ("candidates", f"dropped: {why}", n) for why, n in counts["dropped_candidates"].items()
    ]
    rows += [("candidates", "in a pair", counts["n_candidates_paired"])]
    rows += [("pairs", "proposed", len(result.proposed[0]))]
    rows += [("pairs", f"dropped: {why}", n) for why, n in counts["dropped_pairs"].items()]
    rows += [("pairs", "train", counts["n_train"]), ("pairs", "test", counts["n_test"])]
    print_table(f"{counts['strategy']} on {counts['axis']}", ("", "step", "number"), rows)
    both = counts["n_candidates_chosen_and_rejected"]
    if form == "kto" and both:
        show(
            f"note: {counted(both, 'song')} chosen in one pair of a prompt and rejected in "
            "another; kto leaves them out", err=False,
        )  # fmt: skip
    for text in counts["warnings"]:
        show(f"warning: {text}", "yellow", err=False)


def _exit_code(result: PairSet, scored: bool) -> int:
    """1 when this run could not read or score some audio."""
    counts = result.dropped.counts()
    failed = counts.get("unreadable audio", 0) + (counts.get("not scored", 0) if scored else 0)
    if failed:
        text = f"{counted(failed, 'candidate')} could not be read or scored"
        show(f"{text}; dropped.jsonl has the reasons", "red")
    if not len(result.chosen):
        show("no pair was made; the table has the reasons", "red")
    return SOME_FAILED if failed else OK
