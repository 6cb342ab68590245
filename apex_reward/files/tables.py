"""Read and write the project's tables: `.jsonl`, `.csv` and `.parquet`, one layout in three forms.

Files are written whole: to a temporary name beside the target, then renamed.
In CSV a list is joined by `;` and null is empty. Names stay text in CSV, whatever they look like:
`000002` and `0e0` are ids, not 2 and 0.0 (`TEXT_COLUMNS`); whole numbers without leading zeros
lose nothing and are numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".jsonl", ".csv", ".parquet")
TEXT_COLUMNS = frozenset(
    (
        "id",
        "audio_id",
        "track_id",
        "song_id",
        "segment_id",
        "prompt_id",
        "battle_id",
        "battle_uuid",
        "user_pseudonym",
        "voter",
        "path",
        "audio",
        "audio_a",
        "audio_b",
        "audio_path",
        "file",
        "filename",
        "chosen",
        "rejected",
        "prompt",
        "lyrics",
        "group",
        "platform",
        "source",
        "system",
        "system_a",
        "system_b",
    )
)
"""Columns of a CSV file that hold names or words: text unless numbers say exactly the same."""


def check_format(path: str | Path) -> str:
    """The file ending in lower case; raises UsageError unless it is one of `FORMATS`."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise UsageError(f"{path} ends in {ending or 'nothing'!r}; expected {', '.join(FORMATS)}")
    return ending


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write one JSON value, indented; NaN and infinities are refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_line(row: Mapping[str, Any]) -> str:
    """One row as a JSON line, ending in a newline; NaN becomes null."""
    return json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; raises DataError with the line number of a bad line."""
    return list(iterate_jsonl(path))


def iterate_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file one by one, for files larger than memory; as `read_jsonl`."""
    with open(path, encoding="utf-8-sig") as file:  # Windows programs begin with a mark
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path} line {number} is not JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path} line {number} is not a JSON object: {line.strip()[:80]}")
            yield row


def read_table(path: str | Path, text: Iterable[str] = ()) -> pa.Table:
    """A table of columns from a `.jsonl`, `.csv` or `.parquet` file.

    `text` names columns of a CSV file that stay text beside `TEXT_COLUMNS`.

    Raises UsageError for another ending and DataError for a file that cannot be read as such.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    ending = check_format(path)
    try:
        if ending == ".parquet":
            return pyarrow.parquet.read_table(path)
        if ending == ".csv":
            options = pyarrow.csv.ConvertOptions(
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                column_types=dict.fromkeys(TEXT_COLUMNS | set(text), pa.string()),
            )
            # A text cell may hold line breaks (prompts, lyrics); they are quoted then.
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=options)
            return _numbered(table, options.column_types)
        return table_of(read_jsonl(path))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise DataError(f"{path} cannot be read as {ending}: {error}") from error


def _numbered(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """Text columns of whole numbers only, each written as numbers are, as numbers."""
    import pyarrow as pa

    for name in set(names) & set(table.column_names):
        text = table[name]
        try:
            numbers = text.cast(pa.int64())
        except pa.ArrowInvalid:
            continue
        if len(numbers) > numbers.null_count and numbers.cast(pa.string()).equals(text):
            table = table.set_column(table.column_names.index(name), name, numbers)
    return table


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """An Arrow table of rows; a column is there if any row has it, absent cells are null.

    A column of several kinds (true in one row, "true" in another) becomes text.
    """
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def mixed_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Columns whose cells are of several kinds, as `yes or no`, `number`, `text`: cells of each."""
    kinds: dict[str, dict[str, int]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                counts = kinds.setdefault(name, {})
                counts[_kind(value)] = counts.get(_kind(value), 0) + 1
    return {name: counts for name, counts in kinds.items() if len(counts) > 1}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__


def _column(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    if any(isinstance(value, float) for value in values):
        # JSON writes 3.0 and 3 alike: a column with any float is a float column.
        values = [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else _as_text(value) for value in values])


def _as_text(value: Any) -> str:
    if isinstance(value, (bool, int, float, list, tuple, Mapping)):
        return json.dumps(without_nan(value), ensure_ascii=False, default=str)
    return str(value)


def write_table(path: str | Path, table: pa.Table | Iterable[Mapping[str, Any]]) -> None:
    """Write rows or an Arrow table in the form that the file's ending names, whole."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    ending = check_format(path)
    if not isinstance(table, pa.Table):
        table = table_of(list(table))
    with atomic_path(path) as temporary:
        if ending == ".parquet":
            pyarrow.parquet.write_table(table, temporary)
        elif ending == ".csv":
            pyarrow.csv.write_csv(_flat(table), temporary)
        else:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json_line(row) for row in table.to_pylist())


def _flat(table: pa.Table) -> pa.Table:
    """Lists joined by `;`, as CSV has no lists."""
    import pyarrow as pa

    columns = []
    for column in table.columns:
        if pa.types.is_list(column.type) or pa.types.is_null(column.type):
            joined = [None if v is None else ";".join(map(str, v)) for v in column.to_pylist()]
            columns.append(pa.array(joined, type=pa.string()))
        else:
            columns.append(column)
    return pa.table(columns, names=table.column_names)


def without_nan(value: Any) -> Any:
    """The value as JSON has it: NaN and infinities as None, at any depth; tuples as lists."""
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
