"""Read candidates from any source into one Arrow table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import DataError, UsageError
from apex_reward.files.songs_inside import (
    ROWS_AT_ONCE,
    is_saved_dataset,
    read_songs_inside,
    song_column,
    unpacked,
)
from apex_reward.files.tables import check_format, iterate_jsonl, read_table, table_of
from apex_reward.pairs.axes import is_number

if TYPE_CHECKING:
    import pyarrow as pa

JSONL_BLOCK = 50_000


def read_candidates(source: Any, songs: Path | None = None) -> pa.Table:
    """Rows of candidates as one Arrow table, unchecked.

    Args:
        source: a path (`.jsonl`, `.csv`, `.parquet`, TangoFlux's `results.json`, or a folder that
            `save_to_disk` left), a sequence of dicts, an Arrow table or a `datasets.Dataset`.
        songs: where songs that lie in the source itself (an Audio column) are written as files;
            None: a folder that goes when the process ends.

    Raises:
        UsageError: something else, or another file ending.
        DataError: a file that cannot be read as its ending says.
    """
    import pyarrow as pa

    if isinstance(source, (str, Path)):
        if str(source).lower().endswith(".json"):
            return _table_of_rows(_tangoflux_candidates(source))
        inside = _songs_inside(source, songs)
        if inside is not None:
            return inside
        jsonl = check_format(source) == ".jsonl"
        return _read_jsonl_blocks(source) if jsonl else read_table(source)
    if isinstance(source, pa.Table):
        inside = song_column(source.schema) is not None
        return unpacked(source.to_batches(ROWS_AT_ONCE), songs) if inside else source
    if hasattr(source, "with_format"):
        rows = source.with_format("arrow")
        inside = song_column(rows.features.arrow_schema) is not None
        return unpacked(rows.iter(ROWS_AT_ONCE), songs) if inside else rows[:]
    if isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        return _table_of_rows(source)
    raise UsageError(
        f"candidates are {type(source).__name__}; expected a list of dicts, an Arrow table, "
        "a datasets.Dataset or the path of a .jsonl, .csv or .parquet file"
    )


def _tangoflux_candidates(path: str | Path) -> list[dict[str, Any]]:
    """Candidates of TangoFlux's `results.json`: a list per prompt of `id, sample, path, captions`.

    Other keys, such as scores, stay columns.
    """
    try:
        groups = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as .json: {error}") from error
    rows: list[Any] = [row for group in groups for row in group] if _is_lists(groups) else [None]
    if not all(isinstance(row, Mapping) and {"id", "path", "captions"} <= set(row) for row in rows):
        raise DataError(
            f"{path} is not TangoFlux's results.json; expected a list of lists of objects with "
            "id, sample, path, captions"
        )
    return [
        {"prompt_id": row["id"], "prompt": row["captions"], "audio": row["path"]}
        | {name: value for name, value in row.items() if name not in ("id", "path", "captions")}
        for row in rows
    ]


def _is_lists(groups: Any) -> bool:
    return isinstance(groups, list) and all(isinstance(group, list) for group in groups)


def _songs_inside(path: str | Path, songs: Path | None) -> pa.Table | None:
    """The table of a data set with songs; None where it holds paths, or is another file."""
    if is_saved_dataset(path) or str(path).lower().endswith(".parquet"):
        return read_songs_inside(path, songs)
    return None


def _read_jsonl_blocks(path: str | Path) -> pa.Table:
    """A JSON-lines file in blocks, so that a million rows never are a million dicts at once."""
    import pyarrow as pa

    blocks: list[pa.Table] = []
    rows: list[Mapping[str, Any]] = []
    try:
        for row in iterate_jsonl(path):
            rows.append(row)
            if len(rows) == JSONL_BLOCK:
                blocks.append(_table_of_rows(rows))
                rows = []
        blocks.append(_table_of_rows(rows))
        blocks = [block for block in blocks if block.num_columns] or blocks[:1]
        return pa.concat_tables(_agreed(blocks), promote_options="permissive")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path} cannot be read as .jsonl: {error}") from error


def _agreed(blocks: list[pa.Table]) -> list[pa.Table]:
    """Blocks whose ids or groups are text in one and numbers in another, made text in all."""
    import pyarrow as pa

    for name in ("prompt_id", "group"):
        types = {b.schema.field(name).type for b in blocks if name in b.column_names}
        if any(map(pa.types.is_string, types)) and any(map(is_number, types)):
            blocks = [
                b.set_column(b.column_names.index(name), name, b[name].cast(pa.string()))
                if name in b.column_names
                else b
                for b in blocks
            ]
    return blocks


def _table_of_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows to columns; ids and groups of mixed type become text, other mixed columns are left out.

    A column that nobody asks for must not stop the run, and one that is asked for is reported as
    not numeric.
    """
    import pyarrow as pa

    try:
        return table_of(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: _lenient_column([row.get(name) for row in rows]) for name in names})


def _lenient_column(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return table_of([{"column": value} for value in values])["column"].combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        texts = [None if value is None else _as_text(value) for value in values]
        return pa.array(texts, pa.string())


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)
