"""Read and write tables: `.jsonl`, `.csv` and `.parquet`, one layout in three forms.

In CSV a list is joined by `;` and null is empty. Names stay text in CSV, whatever they look like:
`000002` and `0e0` are ids, not 2 and 0.0 (`TEXT_COLUMNS`); whole numbers without leading zeros
lose nothing and are numbers.

One odd cell never costs a file: text that is not UTF-8 is kept with backslashes (`printable`), and
`with_numbers` reads a column of numbers around the cells that are none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from apex_reward.errors import DataError, UsageError
from apex_reward.files.atomic import atomic

FORMATS = (".jsonl", ".csv", ".parquet")
# fmt: off
TEXT_COLUMNS = frozenset((
    "id", "audio_id", "track_id", "song_id", "segment_id", "prompt_id", "battle_id", "battle_uuid",
    "user_pseudonym", "voter", "path", "audio", "audio_a", "audio_b", "audio_path", "file",
    "filename", "chosen", "rejected", "prompt", "lyrics", "group", "platform", "source", "system",
    "system_a", "system_b",
))
# fmt: on
"""Columns of a CSV file that hold names or words: text unless numbers say exactly the same."""


NUMBER = r"^[+-]?(0|[1-9]\d*|(0|[1-9]\d*)?\.\d+|(0|[1-9]\d*)\.)([eE][+-]?\d+)?$"
NOTHING = pyarrow.csv.ConvertOptions().null_values


def check_format(path: str | Path) -> str:
    """The file ending in lower case; raises UsageError unless it is one of `FORMATS`."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise UsageError(f"{path} ends in {ending or 'nothing'!r}; expected {', '.join(FORMATS)}")
    return ending


def check_output(output: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Raises UsageError where a result would replace one of the files that it is made from."""
    for given in inputs if os.path.exists(output) else ():
        with suppress(OSError):
            if given is not None and os.path.samefile(given, output):
                raise UsageError(f"{output} is an input of this command; name another output")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole; what is not UTF-8 as `printable`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: object) -> None:
    """Write one JSON value, indented; NaN and infinities are refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """One JSON object; raises DataError where the file is not there or holds none."""
    with reading(path):
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object")
    return value


def json_line(row: Mapping[str, Any]) -> str:
    """One row as a JSON line, ending in a newline; cells as `json_ready`."""
    return json.dumps(json_ready(row), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; raises DataError with the line number of a bad line.

    Bytes that are not UTF-8 are surrogates in the text, as in file names of Python.
    """
    rows = []
    # Windows programs begin with a mark.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path} line {number} is not JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path} line {number} is not a JSON object: {line.strip()[:80]}")
            rows.append(row)
    return rows


def read_table(path: str | Path, text: Iterable[str] = ()) -> pa.Table:
    """A table of columns from a `.jsonl`, `.csv` or `.parquet` file.

    Decimals are floats, and texts of every Arrow kind are strings. A column of several kinds is
    text; `with_numbers` reads its numbers.

    Args:
        text: columns of a CSV file that stay text beside `TEXT_COLUMNS`.

    Raises:
        UsageError: another ending.
        DataError: no such file, or a damaged one; JSON lines with the number of the bad line.
    """
    ending = check_format(path)
    with reading(path):
        if ending == ".parquet":
            return plain_types(pyarrow.parquet.read_table(path))
        if ending == ".csv":
            return _read_csv(path, TEXT_COLUMNS | set(text))
        return table_of(read_jsonl(path))


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raises DataError where the file or folder that the block reads is not there or is damaged."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError, UnicodeError, json.JSONDecodeError) as error:
        ending = Path(path).suffix.lower() or "a folder"
        raise DataError(f"{path} cannot be read as {ending}: {error}") from error


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl`, `.csv` or `.parquet` file; errors as in `read_table`.

    Cells of JSON lines stay as they are: a column may hold several kinds.
    """
    if check_format(path) == ".jsonl" and os.path.exists(path):
        return read_jsonl(path)
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def with_numbers(
    table: pa.Table, names: Iterable[str] | None = None
) -> tuple[pa.Table, dict[str, list[int]]]:
    """The table with its columns of numbers as numbers, and which cells of them are unreadable.

    Numbers are numbers and text that is a plain number (`4.2`, `-1e-3`; not `007`). Null, NaN and
    the texts that CSV files have for nothing (empty, `NA`, `null`, ...) are missing. Everything
    else is unreadable: other text, true and false, lists, mappings, infinities.

    Args:
        names: columns to read as numbers. None: those where at least half of the cells that are
            not missing are numbers; never `TEXT_COLUMNS`.

    Returns:
        The table, in whose columns of numbers missing and unreadable cells are null; and for each
        column with unreadable cells their rows, from 0.
    """
    unreadable: dict[str, list[int]] = {}
    wanted = [n for n in table.column_names if n not in TEXT_COLUMNS] if names is None else names
    for name in wanted:
        column = table[name]
        if pa.types.is_integer(column.type):
            continue
        numbers, bad = _numbers(column)
        rows = pc.indices_nonzero(bad).to_pylist()
        if names is not None or len(numbers) - numbers.null_count >= max(len(rows), 1):
            table = table.set_column(table.column_names.index(name), name, numbers)
            unreadable |= {name: rows} if rows else {}
    return table, unreadable


def _numbers(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The numbers of a column, null where there is none; and where a cell is unreadable."""
    if pa.types.is_floating(column.type):
        finite = pc.is_finite(column)
        bad = pc.fill_null(pc.is_inf(column), False)
        return pc.if_else(finite, column, None).cast(pa.float64()), bad
    if not pa.types.is_string(column.type):
        nothing = pa.chunked_array([pa.nulls(len(column), pa.float64())])
        return nothing, pc.is_valid(column)
    cells = pc.utf8_trim_whitespace(column)
    plain = pc.fill_null(pc.match_substring_regex(cells, NUMBER), False)
    numbers = pc.if_else(plain, cells, None).cast(pa.float64())
    numbers = pc.if_else(pc.is_finite(numbers), numbers, None)  # 1e999
    missing = pc.is_in(cells, value_set=pa.array([*NOTHING, None], pa.string()))
    return numbers, pc.and_(pc.is_null(numbers), pc.invert(missing))


def plain_types(table: pa.Table) -> pa.Table:
    """Strings and floats in place of Arrow's other kinds of text and number."""
    columns = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
            kind = pa.float64()
        elif pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
            kind = pa.string()
        columns[field.name] = column.cast(kind)
        try:
            columns[field.name].validate(full=pa.types.is_string(kind))
        except pa.ArrowInvalid:
            cells = columns[field.name].cast(pa.binary()).to_pylist()
            texts = [None if cell is None else _decoded(cell) for cell in cells]
            columns[field.name] = pa.chunked_array([texts], pa.string())
    return pa.table(columns)


def _read_csv(path: str | Path, text: Iterable[str]) -> pa.Table:
    content = Path(path).read_bytes()
    options = pyarrow.csv.ConvertOptions(
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        column_types=dict.fromkeys(text, pa.string()),
    )
    # A text cell may hold line breaks (prompts, lyrics); they are quoted then.
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    source = pa.BufferReader(_decoded(content).encode())
    table = pyarrow.csv.read_csv(source, parse_options=parse, convert_options=options)
    for name in set(text) & set(table.column_names):
        # Names that are whole numbers, each written as numbers are, are numbers.
        with suppress(pa.ArrowInvalid):
            numbers = table[name].cast(pa.int64())
            if numbers.null_count < len(numbers) and numbers.cast(pa.string()).equals(table[name]):
                table = table.set_column(table.column_names.index(name), name, numbers)
    return table


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """An Arrow table of rows; a column is there if any row has it, absent cells are null.

    A column of several kinds (true in one row, "true" in another) becomes text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    if any(isinstance(value, float) for value in values):
        # JSON writes 3.0 and 3 alike: a column with any float is a float column.
        values = [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
    try:
        if {bool, float} <= set(map(type, values)):  # Arrow would read true as 1.0
            raise pa.ArrowInvalid("true and false among numbers")
        return pa.array(values)
    except UnicodeEncodeError:
        return _column([json_ready(value) for value in values])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([as_text(value) for value in values])


def as_text(value: Any) -> str | None:
    """A cell as text: lists, mappings, true and false as JSON; None where it is None or NaN."""
    if isinstance(value, (bool, list, tuple, Mapping)):
        return json.dumps(json_ready(value), ensure_ascii=False, default=str)
    return None if value is None or value != value else printable(str(value))


def write_table(path: str | Path, table: pa.Table | Iterable[Mapping[str, Any]]) -> None:
    """Write rows or an Arrow table in the form that the file's ending names, whole."""
    ending = check_format(path)
    if not isinstance(table, pa.Table):
        table = table_of(list(table))
    with atomic(path) as temporary:
        if ending == ".parquet":
            pyarrow.parquet.write_table(table, temporary)
        elif ending == ".csv":
            pyarrow.csv.write_csv(_flat(table), temporary)
        else:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json_line(row) for row in table.to_pylist())


def _flat(table: pa.Table) -> pa.Table:
    """Lists joined by `;` and mappings as JSON text, as CSV has neither."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(column.type):
            cells = [";".join(map(str, v)) if isinstance(v, list) else as_text(v)
                     for v in column.to_pylist()]  # fmt: skip
            column = pa.array(cells, pa.string())
        columns[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
    return pa.table(columns)


def json_ready(value: Any) -> Any:
    """The value as JSON and UTF-8 have it, at any depth.

    NaN and infinities are None, tuples are lists, texts are `printable`.
    """
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {json_ready(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return value


def printable(text: str) -> str:
    r"""Text that any file can hold.

    Bytes of a name that are not UTF-8, and halves of an emoji, become `\udcNN` in letters.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "backslashreplace")
