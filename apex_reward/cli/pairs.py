"""`apex-reward pairs`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apex_reward.cli import common, rewards
from apex_reward.errors import UsageError
from apex_reward.pairs.options import PairOptions
from apex_reward.report.cells import counted

if TYPE_CHECKING:
    from apex_reward.pairs.build import PairSet


def pairs(
    candidates: Path,
    /,
    choices: PairOptions,
    asked: rewards.RewardOptions,
    faster: rewards.CascadeOptions,
    running: rewards.RunOptions,
    output: common.Folder | None = None,
    form: Annotated[Literal["folder", "trl", "kto", "tangoflux", "jkstep"], "--format"] = "folder",
    push_to_hub: Annotated[str | None, "REPO"] = None,
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
        resume: keep the songs that a stopped run scored.
        dry_run: print the table of drops and write nothing.
    """
    from apex_reward.files import stamps, tables
    from apex_reward.pairs import export
    from apex_reward.pairs.build import build
    from apex_reward.pairs.candidates import read_candidates
    from apex_reward.pairs.report import summary, write_report
    from apex_reward.pairs.unscored import score_unscored
    from apex_reward.rewards.saved import provenance

    folder = candidates.parent
    if push_to_hub and form not in export.FORMS:
        raise UsageError(f"--push-to-hub needs --format {' or '.join(export.FORMS)}")
    if output is None and not dry_run:
        raise UsageError("give --output FOLDER, or --dry-run to print the table of drops")
    if (asked != rewards.RewardOptions() or faster.cascade) and not asked.given:
        raise UsageError(
            "--mix, --loudness, --guards, --caution and --cascade need --model or --reward"
        )
    target = None if dry_run else output
    kept = target / "scored.jsonl" if target and asked.given else None
    written = ["pairs.parquet", "pairs.jsonl", "dropped.jsonl", *["scored.jsonl"] * asked.given]
    for path in [target / name for name in written] if target else ():
        tables.check_output(path, [candidates])
    table = read_candidates(candidates, target / "songs" if target else None)
    made_by = stamps.read_provenance(candidates)
    with common.progress(lines=False) as update:
        if asked.given:
            reward = rewards.build_reward(asked, running, faster)
            named = next((n for n in ("prompt_id", "prompt") if n in table.column_names), None)
            rewards.show_lost(reward, table[named].to_pylist() if named else None, len(table))
            rulers = [*choices.balance, *(f"rulers.{name}" for name in choices.balance)]
            with common.resumable(common.kept_rows(kept) if kept else str):
                table = score_unscored(
                    table, [*choices.involved, *rulers], reward, folder, workers=running.processes,
                    on_row=functools.partial(update, "scoring"),
                    agreement=choices.min_agreement is not None, kept=kept, resume=resume,
                )  # fmt: skip
            made_by = provenance(reward)
    result = build(table, choices, folder)
    _show_counts(result, summary(result), form)
    if target is not None:
        export.write_folder(result, target, form, folder, made_by)
        write_report(result, target, folder)
        made = counted(len(result.chosen), "pair")
        typer.echo(f"{target}: {made}; listen to them in report.html")
        if push_to_hub is not None:
            typer.echo(f"pushed to {export.push_folder(target / form, push_to_hub)}")
    return _ended(result, scored=asked.given)


def _ended(result: PairSet, scored: bool) -> int:
    """1 when this run could not read or score some audio."""
    counts = result.dropped.counts()
    failed = counts.get("unreadable audio", 0) + scored * counts.get("not scored", 0)
    if failed:
        text = f"{counted(failed, 'candidate')} could not be read or scored"
        common.show(f"{text}; dropped.jsonl has the reasons", "red")
    if not len(result.chosen):
        common.show("no pair was made; the table has the reasons", "red")
    return common.SOME_FAILED if failed else common.OK


def _show_counts(result: PairSet, counts: dict[str, Any], form: str) -> None:
    dropped, removed = counts["dropped_candidates"], counts["dropped_pairs"]
    rows = [
        ("candidates", "read", counts["n_candidates"]),
        *(("candidates", f"dropped: {why}", n) for why, n in dropped.items()),
        ("candidates", "in a pair", counts["n_candidates_paired"]),
        ("pairs", "proposed", len(result.proposed[0])),
        *(("pairs", f"dropped: {why}", n) for why, n in removed.items()),
        ("pairs", "train", counts["n_train"]),
        ("pairs", "test", counts["n_test"]),
    ]
    common.print_table(f"{counts['strategy']} on {counts['axis']}", ("", "step", "number"), rows)
    both = counts["n_candidates_chosen_and_rejected"]
    if form == "kto" and both:
        text = f"note: {counted(both, 'song')} chosen in one pair of a prompt and rejected in "
        common.show(f"{text}another; kto leaves them out", err=False)
    for text in counts["warnings"]:
        common.show(f"warning: {text}", "yellow", err=False)
