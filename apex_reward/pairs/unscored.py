"""Score the candidates that lack a score, with a `Reward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.errors import UsageError
from apex_reward.pairs.audio_facts import song_file
from apex_reward.pairs.axes import axis_mix, measure
from apex_reward.pairs.filters import split_flags
from apex_reward.rewards.load import default_workers
from apex_reward.rewards.rows import row_columns
from apex_reward.scores.head import member_column
from apex_reward.scoring import ScoreSettings, score_songs, score_to_file

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.rewards.reward import Reward


def wanted_columns(
    table: pa.Table, axes: Sequence[str], reward: Reward, agreement: bool = False
) -> list[str]:
    """The columns that the axes read and the reward gives, directly or through a mix, in order.

    Args:
        agreement: whether what an ensemble's members say of the first axis is read too.

    Raises:
        UsageError: no axis reads one, a mix reads a head that the models lack, or members are
            asked for where there is one.
    """
    if agreement and reward.members == 1:
        raise UsageError("--min-agreement needs an ensemble, and the model has one member")
    given = row_columns(reward, rewarded=True)
    used: set[str] = set()
    for axis in axes:
        mix = axis_mix(table, axis)
        names = {axis} if mix is None else set(mix.weights)
        if mix is not None and (absent := names - {*given, *table.column_names}):
            raise UsageError(
                f"the model scores {', '.join(given)}, but the axis {axis} reads "
                f"{', '.join(sorted(absent))}"
            )
        used |= names
        if agreement and axis == axes[0]:
            used |= {member_column(name, i) for name in names for i in range(reward.members)}
            given = row_columns(reward, rewarded=True, members=True)
    wanted = [name for name in given if name in used]
    if not wanted:
        raise UsageError(f"the model scores {', '.join(given)}, but the axes read none of them")
    return wanted


def score_unscored(
    table: pa.Table,
    axes: Sequence[str],
    reward: Reward,
    folder: Path | None = None,
    *,
    workers: int | None = None,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    agreement: bool = False,
    kept: Path | None = None,
    resume: bool = False,
) -> pa.Table:
    """The table with every column that an axis needs, scored where a candidate lacks one.

    Args:
        table: candidates as `read_candidates` returns them.
        axes: the axes of the run: heads, `reward` (after guards), `reward_raw`, mixes of heads;
            other columns are left alone.
        reward: judges whole songs; a song listed several times for one prompt is judged once.
        folder: where relative audio paths are tried next to the working directory.
        workers: decoding processes; None: `default_workers`.
        on_row: called with the number of songs done and of all songs to score.
        agreement: fill in what an ensemble's members say of the first axis too.
        kept: a `.jsonl` file that the rows of the songs grow in, as `score` writes it.
        resume: go on with the rows that a stopped run left in `kept`.

    Returns:
        The table with these columns, `duration`, `flags` and `error` filled in; values that were
        given stay. A song that cannot be scored keeps its gaps and gets the reason as `error`.
    """
    wanted = wanted_columns(table, axes, reward, agreement)
    values = {name: measure(table, name).copy() for name in wanted}
    gaps = np.isnan(np.stack(list(values.values()))).any(axis=0)
    audio = table["audio" if "audio" in table.column_names else "path"].to_pylist()
    prompts = _texts(table, "prompt") if reward.model.reads_text else [None] * len(table)
    keys = [(path, prompt) for path, prompt in zip(audio, prompts, strict=True)]
    todo = np.flatnonzero(gaps).tolist()
    # Sorted, so that a candidate's score never depends on the input's order.
    songs = sorted({keys[i] for i in todo if audio[i]}, key=lambda song: (song[0], song[1] or ""))
    sources = [str(song_file(path, folder) or path) for path, _ in songs]
    texts = [prompt or "" for _, prompt in songs] if reward.model.reads_text else None
    count = default_workers() if workers is None else workers
    rows = _rows(reward, sources, texts, agreement, on_row, count, kept, resume)
    scored = dict(zip(songs, rows, strict=True))
    seconds, errors = measure(table, "duration").copy(), _texts(table, "error")
    flags = [split_flags(given) for given in _texts(table, "flags")]
    for i in todo:
        row = scored.get(keys[i])
        if row is None:
            continue
        errors[i] = row["error"]
        flags[i] = [*dict.fromkeys([*flags[i], *row["flags"]])]
        for column, name in ((seconds, "duration"), *((values[name], name) for name in wanted)):
            if np.isnan(column[i]) and row[name] is not None:
                column[i] = row[name]
    return _replaced(table, {**values, "duration": seconds, "error": errors, "flags": flags})


def _rows(
    reward: Reward,
    sources: list[str],
    prompts: list[str] | None,
    members: bool,
    on_row: Callable[[int, int], None],
    workers: int,
    kept: Path | None,
    resume: bool,
) -> list[dict[str, Any]]:
    """A row for every source, in their order."""
    rows: list[dict[str, Any]] = []

    def count(row: dict[str, Any], fresh: bool = True) -> None:
        rows.append(row)
        on_row(len(rows), len(sources))

    settings = ScoreSettings(rewarded=True, members=members)
    workers = min(workers, len(sources))
    if kept is None:
        for row in score_songs(reward, sources, prompts, settings, workers=workers):
            count(row)
    else:
        score_to_file(
            reward, sources, kept, settings, prompts=prompts, workers=workers, resume=resume,
            on_row=count,
        )  # fmt: skip
    return rows


def _texts(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def _replaced(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    import pyarrow as pa

    kinds = {"error": pa.string(), "flags": pa.list_(pa.string())}
    for name, values in columns.items():
        column = pa.array(values, kinds.get(name, pa.float64()))
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table
