"""Score the candidates that lack a score, with a model of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.errors import UsageError
from apex_reward.pairs.audio_facts import resolve
from apex_reward.pairs.axes import axis_mix, measure
from apex_reward.pairs.filters import split_flags
from apex_reward.scores.apex import HEADS

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.model import ApexReward


def wanted_heads(table: pa.Table, axes: Iterable[str]) -> tuple[str, ...]:
    """The heads that the axes read, directly or through a mix, in head order."""
    used: set[str] = set()
    for axis in axes:
        mix = axis_mix(table, axis)
        used |= {axis} if mix is None else set(mix.weights)
    return tuple(head for head in HEADS if head in used)


def score_unscored(
    table: pa.Table,
    axes: Iterable[str],
    model: ApexReward,
    folder: Path | None = None,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> pa.Table:
    """The table with every head that an axis needs, scored where a candidate lacks one.

    Args:
        table: candidates as `read_candidates` returns them.
        axes: the axes of the run; those that are neither heads nor mixes are left alone.
        model: scores whole songs; a song listed several times is scored once.
        folder: where relative audio paths are tried next to the working directory.
        on_row: called with the number of songs done and of all songs to score.

    Returns:
        The table with these heads, `duration`, `flags` and `error` filled in; values that were
        given stay. A song that cannot be scored keeps its gaps and gets the reason as `error`.

    Raises:
        UsageError: no axis reads a head, or the model lacks one that an axis reads.
    """
    heads = wanted_heads(table, axes)
    absent = [head for head in heads if head not in model.config.head_names]
    if not heads or absent:
        reads = ", ".join(absent) or "no head of it"
        raise UsageError(
            f"the model scores {', '.join(model.config.head_names)}, but the axes read {reads}"
        )
    values = {head: measure(table, head).copy() for head in heads}
    gaps = np.isnan(np.stack(list(values.values()))).any(axis=0)
    audio = table["audio" if "audio" in table.column_names else "path"].to_pylist()
    todo = np.flatnonzero(gaps).tolist()
    scored = _scored({audio[i] for i in todo if audio[i]}, model, folder, on_row)
    seconds, errors = measure(table, "duration").copy(), _texts(table, "error")
    flags = [split_flags(given) for given in _texts(table, "flags")]
    for i in todo:
        row = scored.get(audio[i])
        if row is None:
            continue
        errors[i] = row["error"]
        flags[i] = [*dict.fromkeys([*flags[i], *row["flags"]])]
        for column, name in ((seconds, "duration"), *((values[head], head) for head in heads)):
            if np.isnan(column[i]) and row[name] is not None:
                column[i] = row[name]
    return _replaced(table, {**values, "duration": seconds, "error": errors, "flags": flags})


def _scored(
    audio: set[str],
    model: ApexReward,
    folder: Path | None,
    on_row: Callable[[int, int], None],
) -> dict[str, dict[str, Any]]:
    from apex_reward.scoring import default_workers, score_songs

    ordered = sorted(audio)  # so that a candidate's score never depends on the input's order
    sources = [str(resolve(path, folder) or path) for path in ordered]
    rows = score_songs(model, sources, workers=min(default_workers(), len(sources)))
    scored = {}
    for path, row in zip(ordered, rows, strict=True):
        scored[path] = row
        on_row(len(scored), len(ordered))
    return scored


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
