"""`apex-reward score` and `apex-reward import`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apex_reward.cli import common, rewards
from apex_reward.errors import UsageError, named

if TYPE_CHECKING:
    from apex_reward.rewards.reward import Reward
    from apex_reward.scoring.job import OnRow
    from apex_reward.scoring.rows import Tally

SHORT_NAMES = {
    "score_streams": "streams", "score_likes": "likes", "coherence": "coh.",
    "musicality": "mus.", "memorability": "mem.", "clarity": "clar", "naturalness": "nat.",
}  # fmt: skip
"""With these names seven heads fit into 80 columns."""
SEE = "; see the column 'error'"


def score(
    audio: list[str],
    /,
    asked: rewards.RewardOptions,
    faster: rewards.CascadeOptions,
    running: rewards.EngineOptions,
    prompts: Annotated[Path, "FILE"] | None = None,
    output: common.File | None = None,
    segments: bool = False,
    members: bool = False,
    by: Annotated[list[str] | None, "COLUMN"] = None,
    resume: bool = False,
) -> int:
    """Score songs: one row per input, with its scores or the reason of its failure.

    Example: apex-reward score songs/ --model apex-tiny --mix aesthetics --output scores.jsonl

    Args:
        audio: files, folders (searched recursively), globs, lists (.txt, .jsonl, .csv, .parquet),
            or data sets with an Audio column (.parquet, or a folder of `save_to_disk`).
        prompts: prompts of the songs: a table with `audio` or `path`, `prompt`, and optionally
            `lyrics`.
        output: result file: .jsonl, .csv or .parquet. None: the terminal.
        segments: write a second file with a row per segment.
        members: add the scores of each member of an ensemble.
        by: write a second file with the means of groups by this column of a list, with intervals.
            Repeat it for more.
        resume: continue a stopped run that had --output.
    """
    if output is None and (segments or resume or by or running.engine == "ray"):
        raise UsageError("--segments, --by, --resume and --engine ray need --output FILE")
    rewards.check_reachable(asked)  # before torch loads
    with common.quick_imports():
        from apex_reward import scoring
        from apex_reward.files import songs_inside, tables
        from apex_reward.rewards.rows import row_columns
        from apex_reward.scoring import inputs, job
        from apex_reward.scoring.rows import kept_names, result_columns

    if output is not None:
        tables.check_format(output)
        beside = [job.path_beside(output, rows) for rows in ("segments", "groups")]
        for path in (output, *beside):
            tables.check_output(path, [*audio, prompts])
    sources = scoring.find_songs(audio, output and songs_inside.songs_beside(output))
    if by:
        from apex_reward.scoring import groups as parts  # it loads scipy.stats

        parts.check_columns(by, sources)
    engine, workers = running.engine_and_workers()
    if output is None and engine.several:
        raise UsageError("several processes write one file: give --output FILE")
    reward = rewards.build_reward(asked, running, faster)
    groups = None if reward.student is None else inputs.groups_for(sources, prompts)
    settings = scoring.ScoreSettings(asked.rewarded or bool(faster.cascade), segments, members)
    texts = inputs.prompts_for(sources, prompts) if reward.model.reads_text else None
    if output is None:
        rewards.show_lost(reward, groups, len(sources))
        rows = scoring.score_songs(reward, sources, texts, settings, workers=workers, groups=groups)
        return _to_terminal(reward, rows, len(sources))
    kept = common.kept_rows(output)
    finished = resume and output.exists() and not kept()
    with _tallying(len(sources)) as (tally, on_row), common.resumable(kept):
        scoring.score_to_file(
            reward, sources, output, settings, prompts=texts, workers=workers, engine=engine,
            resume=resume, on_row=on_row, groups=groups,
        )  # fmt: skip
    if engine.share.first:
        if finished:
            common.show(f"{output} is finished; nothing to do")
        typer.echo(f"{tally} -> {output}")
        figures = row_columns(reward, settings.rewarded)
        given = dict.fromkeys(name for source in sources for name in source.columns)
        names = kept_names(given, result_columns(reward, settings))
        columns = {column: names[column] for column in by or ()}
        for line in parts.write_groups(output, columns, figures) if by else ():
            typer.echo(line)
        rewards.show_lost(reward, groups, len(sources))
    return engine.ended(common.show_failures(tally.reasons, SEE))


@contextmanager
def _tallying(total: int) -> Iterator[tuple[Tally, OnRow]]:
    """Counts, and a progress bar that shows them."""
    from apex_reward.scoring.rows import Tally

    tally = Tally()
    with common.progress(lines=False) as update:
        update("songs", 0, total)

        def on_row(row: dict[str, Any], fresh: bool) -> None:
            tally.count(row, fresh)
            note = f"{tally.hours:.2f} h of audio, {tally.speed:.1f} x real time"
            update("songs", tally.songs, total, note)

        yield tally, on_row


def _to_terminal(reward: Reward, rows: Iterable[dict[str, Any]], total: int) -> int:
    """A table on a terminal, JSON lines into a pipe."""
    from apex_reward.files.tables import json_line

    shown = []
    with _tallying(total) as (tally, on_row):
        for row in rows:
            on_row(row, True)
            if sys.stdout.isatty():
                shown.append(row)
            else:
                typer.echo(json_line(row), nl=False)
    if shown:
        _print_rows(reward, shown)
    common.show(str(tally))
    return common.show_failures(tally.reasons, SEE)


def import_(
    *,
    predictor: Annotated[str, "FILE|FOLDER"],
    encoder: Annotated[str, "FOLDER"],
    output: common.Folder,
    kind: Literal["apex", "songeval", "tunejury"] = "apex",
    clap: Annotated[str | None, "FOLDER"] = None,
) -> None:
    """Convert published weights into one folder for --model, whole or not at all.

    Example: apex-reward import --predictor best_model.pt --encoder m-a-p/MERT-v1-95M --output apex

    Args:
        predictor: best_model.pt, or a folder or hub id with the predictor or head.
        encoder: folder or hub id of the encoder: MERT or MuQ.
        output: folder to write: config.json and model.safetensors.
        kind: format of the published weights.
        clap: folder or hub id of CLAP, for `tunejury`.
    """
    from apex_reward.files.atomic import atomic
    from apex_reward.model import ApexReward
    from apex_reward.model.files import check_unused
    from apex_reward.rewards.load import FOREIGN, without_bars

    target = check_unused(output)
    if clap is not None and kind != "tunejury":
        raise UsageError(f"--clap is for --kind tunejury; {kind} reads none")
    reader: Any = ApexReward if kind == "apex" else named(FOREIGN[kind], "Class")
    options = {} if clap is None else {"clap": clap}
    with without_bars(), atomic(target) as temporary:
        made = reader.from_published(predictor, encoder, **options)
        made.save_pretrained(temporary)
    heads = ", ".join(head.name for head in made.heads)
    count = sum(weight.numel() for weight in made.parameters())
    typer.echo(f"{output}: {count:,} weights, heads {heads}")
    typer.echo(f"score with it: apex-reward score SONGS --model {output}")


def _print_rows(reward: Reward, rows: list[dict[str, Any]]) -> None:
    title = f"Scores by {', '.join(map(str, reward.sources.values()))}"
    title += " (a demonstration model)" * reward.demonstration
    values = [n for n in (*(head.name for head in reward.heads), "reward") if n in rows[0]]
    places = {name: 1 if name.startswith("score_") else 2 for name in values}
    columns = ["song", "time", *(SHORT_NAMES.get(name, name) for name in values), "flags"]
    table = []
    for row in rows:
        seconds = row["duration"]
        clock = None if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        figures = [None if row[n] is None else f"{row[n]:.{places[n]}f}" for n in values]
        flags = "failed" if row["error"] else row["flags"]
        table.append([Path(row["path"]).name, clock, *figures, flags])
    common.print_table(title, columns, table)
