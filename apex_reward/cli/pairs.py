"""`apex-reward pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import OK, SOME_FAILED, print_table, progress_bar, reports_errors
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.pairs.build import PairSet
    from apex_reward.pairs.options import PairOptions


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    app.command("pairs")(reports_errors(pairs))


def pairs(
    candidates: Annotated[
        Path,
        typer.Argument(
            help="Scored candidates: .jsonl, .csv, .parquet, or a data set that save_to_disk left."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write. Needed unless --dry-run is given.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="best-worst, all, top-bottom, margin, mrsd, pareto, two-axis, or "
            "package.module:function."
        ),
    ] = "best-worst",
    axis: Annotated[
        str | None,
        typer.Option(
            help="Primary axis: a numeric column, or a mix of heads such as "
            "musicality=1,clarity=0.5 or overall. Default: musicality."
        ),
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Other axes for mrsd, pareto and two-axis: A,B.")
    ] = None,
    min_margin: Annotated[
        float, typer.Option(help="Smallest difference on the primary axis.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(help="Candidates on each side of top-bottom. Default: 2.")
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            help="Of the within-prompt differences, for margin (default 0.75) and mrsd (0.95)."
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X", help="For two-axis, given twice.")
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TOLERANCE", help="Axis of which the chosen may lose at most so much."
        ),
    ] = None,
    chosen_floor: Annotated[
        str | None, typer.Option(help="Least primary axis of the chosen: a value, or q0.8.")
    ] = None,
    rejected_ceiling: Annotated[
        str | None, typer.Option(help="Most primary axis of the rejected: a value, or q0.2.")
    ] = None,
    match_duration: Annotated[
        float | None, typer.Option(help="Largest difference of length in seconds.")
    ] = None,
    match_loudness: Annotated[
        float | None,
        typer.Option(help="Largest difference of loudness in dB; measured where not given."),
    ] = None,
    drop_flags: Annotated[
        str | None, typer.Option(help="Drop candidates with any of these flags: A,B.")
    ] = None,
    balance_axes: Annotated[
        bool, typer.Option("--balance-axes", help="Equally many pairs for each deciding axis.")
    ] = False,
    max_pairs_per_prompt: Annotated[
        int | None, typer.Option(help="Keep the widest margins of each prompt.")
    ] = None,
    max_pairs_per_candidate: Annotated[
        int | None, typer.Option(help="Keep the widest margins of each candidate.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(help="Share of pairs in the split 'test', by whole prompt and group.")
    ] = 0.1,
    form: Annotated[
        str, typer.Option("--format", help="folder, trl, kto or tangoflux.")
    ] = "folder",
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Make the folder of trl or kto a data set on the hub."),
    ] = None,
    figures: Annotated[
        str, typer.Option(help="Write the plots as files too: pdf, svg, png, joined by commas.")
    ] = "",
    model: given.ModelOption = None,
    reward: given.RewardOption = None,
    mix: given.MixOption = None,
    loudness: given.LoudnessOption = None,
    guards: given.GuardsOption = None,
    caution: given.CautionOption = None,
    encoder: given.EncoderOption = None,
    device: given.DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be dropped; write nothing.")
    ] = False,
) -> int:
    """Preference pairs from scored candidates, every drop accounted for.

    Example: apex-reward pairs scores.jsonl --axis musicality --min-margin 0.2 --output pairs
    """
    from apex_reward.files.stamps import read_provenance
    from apex_reward.pairs.export import FORMATS
    from apex_reward.pairs.hub import FORMS as PUSHED
    from apex_reward.pairs.options import PairOptions, as_names
    from apex_reward.pairs.reading import read_candidates
    from apex_reward.report.figures import parse_formats

    formats = parse_formats(figures) if figures else ()
    if form not in FORMATS:
        raise UsageError(f"--format is {form!r}; expected one of {', '.join(FORMATS)}")
    if push_to_hub and form not in PUSHED:
        raise UsageError(f"--push-to-hub needs --format {' or '.join(PUSHED)}")
    if output is None and not dry_run:
        raise UsageError("give --output DIR, or --dry-run to see what would be dropped")
    options = PairOptions(
        strategy=strategy,
        axis=axis,
        axes=as_names(axes),
        min_margin=min_margin,
        top_k=top_k,
        quantile=quantile,
        threshold=_numbers_by_name("threshold", threshold),
        protect=_numbers_by_name("protect", protect),
        chosen_floor=chosen_floor,
        rejected_ceiling=rejected_ceiling,
        match_duration=match_duration,
        match_loudness=match_loudness,
        drop_flags=as_names(drop_flags),
        balance_axes=balance_axes,
        max_pairs_per_prompt=max_pairs_per_prompt,
        max_pairs_per_candidate=max_pairs_per_candidate,
        test_share=test_share,
        seed=seed,
    )
    table = read_candidates(candidates, None if dry_run or output is None else output / "songs")
    judge = given.RewardOptions(
        model, reward, mix, loudness, guards, caution, encoder, device=device
    )
    made_by = read_provenance(candidates)
    if judge.given:
        table, made_by = _scored(table, options, judge, candidates.parent)
    elif judge != given.RewardOptions():
        raise UsageError("--mix, --loudness, --guards and --caution need --model or --reward")
    result = _built(table, options, candidates.parent)
    _print_counts(result)
    if output is not None and not dry_run:
        _written(result, output, candidates.parent, form, made_by, formats, push_to_hub)
    return _exit_code(result, scored=judge.given)


def _numbers_by_name(option: str, given: list[str] | None) -> dict[str, float]:
    """`NAME=X` texts as a dict; the name may be a mix, so the last `=` counts."""
    numbers: dict[str, float] = {}
    for text in given or []:
        name, _, number = text.rpartition("=")
        try:
            numbers[name.strip()] = float(number)
        except ValueError:
            name = ""
        if not name.strip():
            raise UsageError(f"--{option} is {text!r}; expected NAME=NUMBER")
    return numbers


def _scored(
    table: pa.Table, options: PairOptions, judge: given.RewardOptions, folder: Path
) -> tuple[pa.Table, dict[str, Any]]:
    """The table with its gaps scored, and what scored them."""
    from apex_reward.pairs.unscored import score_unscored
    from apex_reward.rewards.provenance import provenance

    reward = given.build_reward(judge)
    with progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        table = score_unscored(
            table,
            options.involved,
            reward,
            folder,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    return table, provenance(reward)


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
    typer.echo(f"{output}: {len(result.winner)} pairs; listen to them in report.html")
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
    if not len(result.winner):
        typer.secho("no pair was made; the table says why", err=True, fg="red")
    return SOME_FAILED if failed else OK
