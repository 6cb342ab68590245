"""Score the candidates that lack a score, with a `Reward`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from apex_reward.errors import UsageError
from apex_reward.files.tables import with_numbers
from apex_reward.pairs.candidates import MESSAGES, axis_mix, prompt_keys, split_flags
from apex_reward.pairs.constraints import song_file
from apex_reward.prompt import Prompt, prompt_of
from apex_reward.rewards.load import default_workers
from apex_reward.rewards.rows import row_columns
from apex_reward.scores.head import member_column
from apex_reward.scoring import ScoreSettings, score_to_file

if TYPE_CHECKING:
    from apex_reward.rewards.reward import Reward


def wanted_columns(
    table: pa.Table, axes: Sequence[str], reward: Reward, agreement: bool = False
) -> list[str]:
    """The columns that the axes read and the reward gives, directly or through a mix, in order.

    Args:
        agreement: whether the first axis by each member of an ensemble is read too.

    Raises:
        UsageError: no axis reads one, a mix reads a head that the models lack, or members are
            asked for where there is one.
    """
    if agreement and reward.members == 1:
        raise UsageError("--min-agreement needs an ensemble, and the model has one member")
    given = row_columns(reward, rewarded=True, members=agreement)
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
        agreement: fill in the first axis by each member of an ensemble too.
        kept: a `.jsonl` file that the rows of the songs grow in, as `score` writes it.
        resume: go on with the rows that a stopped run left in `kept`.

    Returns:
        The table with these columns, `duration`, `flags` and `error` filled in; values that were
        given stay. A song that cannot be scored keeps its gaps and gets the reason as `error`.
    """
    wanted = wanted_columns(table, axes, reward, agreement)
    names = [*wanted, "duration"]
    numbers = with_numbers(table, set(names) & set(table.column_names))[0]
    values = {name: np.array(_cells(numbers, name), np.float64) for name in names}
    gaps = np.isnan(np.stack([values[name] for name in wanted])).any(axis=0)
    audio = _cells(table, "audio" if "audio" in table.column_names else "path")
    given = [_cells(table, name) for name in ("prompt", MESSAGES, "lyrics")]
    named = {n: table[n] for n in ("prompt_id", "prompt") if n in table.column_names}
    given.append(prompt_keys(named).to_pylist() if named else [None] * len(table))
    keys: list[tuple[str, str, str, str]] = []
    for path, text, messages, words, group in zip(audio, *given, strict=True):
        prompt = Prompt("")
        if reward.model.reads_text:
            prompt = prompt_of(json.loads(messages) if messages else text, words)
        # With a cascade a song's reward depends on the other songs of its prompt.
        own = "" if reward.student is None else str(group)
        keys.append((path or "", prompt, prompt.lyrics or "", own))
    lacking = [i for i in np.flatnonzero(gaps).tolist() if audio[i]]
    # Sorted, so that a candidate's score never depends on the input's order.
    songs = sorted({keys[i] for i in lacking})
    sources = [str(song_file(path, folder) or path) for path, *_ in songs]
    rows: list[dict[str, Any]] = []

    def count(row: dict[str, Any], fresh: bool = True) -> None:
        rows.append(row)
        on_row(len(rows), len(sources))

    texts = [prompt_of(text, words or None) for _, text, words, _ in songs]
    groups = None if reward.student is None else [group for *_, group in songs]
    rewarded = groups is not None or any(name.startswith("reward") for name in wanted)
    settings = ScoreSettings(rewarded=rewarded, members=agreement)
    workers = min(default_workers() if workers is None else workers, len(sources))
    with tempfile.TemporaryDirectory() as work:
        score_to_file(
            reward, sources, kept or Path(work, "scored.jsonl"), settings,
            prompts=texts if reward.model.reads_text else None, workers=workers, resume=resume,
            on_row=count, groups=groups,
        )  # fmt: skip
    scored = dict(zip(songs, rows, strict=True))
    errors, flags = _cells(table, "error"), [split_flags(cell) for cell in _cells(table, "flags")]
    for i in lacking:
        found = scored[keys[i]]
        errors[i] = found["error"]
        flags[i] = [*dict.fromkeys([*flags[i], *found["flags"]])]
        for name, column in values.items():
            if np.isnan(column[i]) and found[name] is not None:
                column[i] = found[name]
    columns = {name: table[name] for name in table.column_names}
    columns |= {name: pa.array(column, from_pandas=True) for name, column in values.items()}
    columns["error"] = pa.array(errors, pa.string())
    columns["flags"] = pa.array(flags, pa.list_(pa.string()))
    return pa.table(columns)


def _cells(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)
