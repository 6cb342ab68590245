"""From a source to `Battles`: read, join tables of other scores, filter, count.

Shape key: N = battles, W = embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex_reward.arena.battles import Battles, battles_of, uuid_of
from apex_reward.arena.cells import truth
from apex_reward.arena.results import Provenance
from apex_reward.arena.sources import BattleFilter, Row, filter_rows, read_rows
from apex_reward.errors import DataError, listed
from apex_reward.files.stamps import provenance_path
from apex_reward.files.tables import read_table
from apex_reward.metrics import FloatArray


def load_rows(
    source: str | Path, *, keep: BattleFilter | None = None, tables: Sequence[Path] = ()
) -> tuple[list[Row], dict[str, int]]:
    """Battle rows that pass the filter, and how many were left out for each reason.

    Args:
        source: as in `sources.read_rows`.
        keep: the filter; None keeps every battle.
        tables: score tables of other models; their columns join by `battle_uuid`, for votes of
            `apex-reward listen` by the battle that was voted on, turned where its sides were.
    """
    keep = keep or BattleFilter()
    rows, folder, dropped = read_rows(source, audio=keep.audio)
    for table in tables:
        rows = _joined(rows, table)
    kept, reasons = filter_rows(rows, keep, folder)
    return kept, {**dropped, **reasons}


def load_battles(
    source: str | Path,
    *,
    scores: Sequence[str] | None = None,
    keep: BattleFilter | None = None,
    tables: Sequence[Path] = (),
) -> Battles:
    """`battles_of` the rows of `load_rows`."""
    rows, dropped = load_rows(source, keep=keep, tables=tables)
    return battles_of(rows, scores=scores, dropped=dropped)


def provenance(source: str | Path, tables: Sequence[Path] = ()) -> Provenance:
    """What `metrics.json` says about its making: package version, and what made the scores.

    `made_by` holds, per table, what `arena score` left beside it (model, mix and settings).
    """
    from apex_reward import __version__

    made_by = {}
    for table in map(Path, (source, *tables)):
        songs = table.with_name(f"{table.stem}.songs.jsonl")
        for made in (provenance_path(table), provenance_path(songs)):
            if table.suffix and made.is_file():
                made_by[table.name] = json.loads(made.read_text(encoding="utf-8"))
                break
    return Provenance(__version__, str(Path(source).name), made_by)


def load_embeddings(path: Path, battles: Battles) -> FloatArray:
    """(N, 2, W) song embeddings of both sides, NaN where a side has none.

    Args:
        path: a table with a row per song: `battle_uuid`, `side` (`a` or `b`), and `vector`, a
            list of W numbers (joined by `;` in CSV).
        battles: they need their `battle_uuid`.

    Raises:
        DataError: a column is absent, vectors differ in width, or no row belongs to a battle.
    """
    table = read_table(path)
    absent = [name for name in ("battle_uuid", "side", "vector") if name not in table.column_names]
    if absent:
        raise DataError(f"{path} lacks the columns {', '.join(absent)}")
    vectors = {}
    for row in table.to_pylist():
        vector = row["vector"]
        numbers = vector.split(";") if isinstance(vector, str) else vector
        side = str(row["side"]).strip().lower()
        vectors[str(row["battle_uuid"]), side] = np.array(numbers, dtype=np.float64)
    widths = sorted({vector.shape for vector in vectors.values()})
    if len(widths) != 1 or len(widths[0]) != 1:
        raise DataError(f"vectors in {path} differ in width: {listed(widths)}")
    result = np.full((len(battles), 2, widths[0][0]), np.nan)
    for row_number, uuid in enumerate(battles.uuid.tolist()):
        for column, side in enumerate("ab"):
            if (uuid, side) in vectors:
                result[row_number, column] = vectors[uuid, side]
    if np.isnan(result).all():
        raise DataError(f"no row of {path} has the battle_uuid of a battle and side a or b")
    return result


def _joined(rows: Sequence[Row], table: Path) -> list[Row]:
    extra: dict[str, Mapping[str, Any]] = {
        uuid: row for row in read_table(table).to_pylist() if (uuid := uuid_of(row))
    }
    joined = [_of_row(row, extra) for row in rows]
    if not any(joined):
        raise DataError(f"no battle_uuid of {table} is one of the battles'")
    # The battle's own columns win: a score table may repeat them.
    return [{**more, **row} for more, row in zip(joined, rows, strict=True)]


def _of_row(row: Row, extra: Mapping[str, Row]) -> Row:
    """What a table holds on a battle, its sides as in the battle; empty where it holds nothing."""
    if uuid_of(row) in extra:
        return extra[uuid_of(row)]
    found = extra.get(str(row.get("comparison") or ""), {})
    if truth(row.get("swapped")) != 1:
        return found
    other = {"_a": "_b", "_b": "_a"}
    return {f"{name[:-2]}{other[name[-2:]]}" if name[-2:] in other else name: value
            for name, value in found.items()}  # fmt: skip
