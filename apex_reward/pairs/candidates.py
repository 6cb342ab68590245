"""Candidates of any source as columns in one canonical order, so that input order never matters.

A cell that cannot be read never costs more than its row: the reason is in the column
`UNREADABLE`. Chat messages are kept in `MESSAGES`; the column `prompt` has a text for them.

Shape key: N = candidates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files import songs_inside, tables
from apex_reward.pairs.options import PairOptions
from apex_reward.prompt import prompt_of, same_text
from apex_reward.scores.apex import APEX_MIXES
from apex_reward.scores.head import member_column

if TYPE_CHECKING:
    from apex_reward.scores.mix import RewardMix

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MESSAGES, UNREADABLE = " messages", " unreadable"
TEXT_COLUMNS = (
    "prompt_id", "prompt", "lyrics", "audio", "path", "group", "error", "flags", "tokens",
    MESSAGES, UNREADABLE,
)  # fmt: skip
RULERS = "rulers."
"""What the names of columns with rulers begin with."""
BY_FILE = ("length", "loudness")
"""Rulers that are measured on the files where the table does not have them."""
KINDS: dict[str, tuple[type, ...]] = {
    "audio": (str, PathLike, Mapping),
    "path": (str, PathLike, Mapping),
    "tokens": (str, Sequence),
    "flags": (str, Sequence),
}
"""What a cell of these columns may be in rows of Python or JSON."""
MEASURED = ("duration", "loudness", "sample_rate")
TANGOFLUX = {"id": "prompt_id", "captions": "prompt", "path": "audio"}


@dataclass(frozen=True)
class Candidates:
    """N candidates, sorted by prompt, then audio, then everything else they hold.

    Attributes:
        table: the columns of `TEXT_COLUMNS` that were given, and `prompt_id`, `prompt`, `audio`.
            `prompt` is the text, or the id as text where there is none.
        prompt: (N,) number of each candidate's prompt, ascending from 0.
        numbers: (N,) values by name, NaN where there is none: every axis, `duration` (s),
            `loudness` (LUFS), `sample_rate` (Hz), and rulers by their names with `rulers.`.
        members: (N, M) the primary axis by each member of an ensemble; None where it is not known.
        files: (N,) what tells the files of songs apart.
    """

    table: pa.Table
    prompt: Integers
    numbers: dict[str, Floats]
    members: Floats | None = None
    files: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt)

    def column(self, name: str) -> list[Any]:
        """A column of `table` as a list, None in each row where it was not given."""
        if name not in self.table.column_names:
            return [None] * len(self)
        cells: list[Any] = self.table[name].to_pylist()
        return cells

    def rulers(self) -> dict[str, Floats]:
        """Rulers by name: the columns, and length and loudness where they have no value."""
        found = {"length": self.numbers["duration"], "loudness": self.numbers["loudness"]}
        for column, values in self.numbers.items():
            if (name := column.removeprefix(RULERS)) != column:
                found[name] = np.where(np.isnan(values), found.get(name, values), values)
        return found


def read_candidates(source: Any, songs: Path | None = None) -> pa.Table:
    """Rows of candidates as one Arrow table, unchecked.

    Args:
        source: a path (`.jsonl`, `.csv`, `.parquet`, TangoFlux's `results.json`, or a folder that
            `save_to_disk` left), a sequence of dicts, an Arrow table, or a `datasets.Dataset` or
            `IterableDataset`, which is read once.
        songs: where songs that lie in the source itself (an Audio column) are written as files;
            None: a folder that goes when the process ends.

    Raises:
        UsageError: something else, or another file ending.
        DataError: a file that cannot be read as its ending says.
    """
    found = _read_file(source, songs) if isinstance(source, (str, Path)) else source
    if isinstance(found, Mapping) and any(hasattr(part, "features") for part in found.values()):
        raise UsageError(
            f"candidates are a {type(found).__name__} with the splits {', '.join(found)}; give "
            f"one of them, such as dataset[{next(iter(found))!r}]"
        )
    if hasattr(found, "with_format"):
        if not hasattr(found, "__len__"):  # a stream
            found = list(songs_inside.undecoded(found, *songs_inside.SONG_COLUMNS))
        else:
            arrow = found.with_format("arrow")
            inside = songs_inside.song_column(arrow.features.arrow_schema) is not None
            blocks = arrow.iter(songs_inside.ROWS_AT_ONCE)
            found = songs_inside.unpacked(blocks, songs) if inside else arrow[:]
    if isinstance(found, Sequence) and all(isinstance(row, Mapping) for row in found):
        found = tables.table_of([_plain_row(row) for row in found])
    if not isinstance(found, pa.Table):
        raise UsageError(
            f"candidates are {type(source).__name__}; expected a list of dicts, an Arrow table, "
            "a datasets.Dataset or the path of a .jsonl, .csv or .parquet file"
        )
    if songs_inside.song_column(found.schema) is not None:
        found = songs_inside.unpacked(found.to_batches(songs_inside.ROWS_AT_ONCE), songs)
    return _with_messages(tables.plain_types(found))


def _read_file(path: str | Path, songs: Path | None) -> Any:
    """A table, or rows."""
    ending = Path(path).suffix.lower()
    if ending == ".json":
        return _tangoflux_candidates(path)
    inside = None
    if ending == ".parquet" or songs_inside.is_saved_dataset(path):
        inside = songs_inside.read_songs_inside(path, songs)
    read = tables.read_rows if ending == ".jsonl" else tables.read_table
    return read(path) if inside is None else inside


def _tangoflux_candidates(path: str | Path) -> list[dict[str, Any]]:
    """Candidates of TangoFlux's `results.json`: a list per prompt of `id, sample, path, captions`.

    Other keys, such as scores, stay columns.
    """
    with tables.reading(path):
        groups = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        rows = [row for group in groups for row in group]
        names = [{TANGOFLUX[name]: row[name] for name in TANGOFLUX} for row in rows]
    except (TypeError, KeyError):
        raise DataError(
            f"{path} is not TangoFlux's results.json; expected a list of lists of objects with "
            "id, sample, path, captions"
        ) from None
    others = [{name: row[name] for name in row if name not in TANGOFLUX} for row in rows]
    return [own | other for own, other in zip(names, others, strict=True)]


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of Python or JSON; cells of other kinds than `KINDS` are left out, with a reason."""
    found = dict(row)
    for name in KINDS.keys() & row.keys():
        value: Any = row[name]
        value = value.tolist() if hasattr(value, "tolist") else value
        value = fspath(value) if isinstance(value, PathLike) else value
        if value is None or value != value:
            value = None
        elif not isinstance(value, KINDS[name]):
            found[UNREADABLE], value = f"unreadable: {name}", None
        found[name] = split_flags(value) if name == "flags" else value
    prompt = row.get("prompt")
    if (words := prompt_of(prompt).lyrics) is not None:
        found.setdefault("lyrics", words)
    if not isinstance(prompt, (str, int, float, type(None))):
        found |= _message_cells(prompt)
    return found


def split_flags(flags: Any) -> list[str]:
    """Flags from a list, or from the text joined by `;` that CSV holds."""
    given = flags.split(";") if isinstance(flags, str) else [str(flag) for flag in flags or ()]
    return [flag.strip() for flag in given if flag.strip()]


def _with_messages(table: pa.Table) -> pa.Table:
    """A column of chat messages as texts, with the messages beside as JSON."""
    if "prompt" not in table.column_names or not pa.types.is_nested(table["prompt"].type):
        return table
    rows = table.to_pylist()
    return tables.table_of([_plain_row(row | {"prompt": _bare(row["prompt"])}) for row in rows])


def _message_cells(prompt: Any) -> dict[str, Any]:
    """The text of one message; of several, all of them as JSON, so that other talks differ."""
    several = isinstance(prompt, list) and len(prompt) > 1
    text = json.dumps(prompt, ensure_ascii=False, sort_keys=True) if several else prompt_of(prompt)
    return {"prompt": str(text), MESSAGES: json.dumps(prompt, ensure_ascii=False)}


def _bare(value: Any) -> Any:
    """Messages without the empty keys that a table's columns add."""
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def axis_mix(table: pa.Table, axis: str) -> RewardMix | None:
    """The mix that an axis names, None where it is a column; a column of that name comes first."""
    from apex_reward.scores.mix import RewardMix  # it loads torch

    if axis in table.column_names or not ("=" in axis or axis in APEX_MIXES):
        return None
    return RewardMix.parse(axis)


def _mixed(mix: RewardMix | None, columns: Sequence[Floats]) -> Floats:
    """(N,) a mix of the columns of its heads; without a mix the one column."""
    if mix is None:
        return columns[0]
    from torch import from_numpy

    from apex_reward.scores.scores import Scores  # it loads torch

    heads = zip(mix.weights, map(from_numpy, columns), strict=True)
    return mix(Scores(dict(heads))).numpy()


def arrange(table: pa.Table, options: PairOptions) -> Candidates:
    """Check the columns and put the candidates into canonical order.

    Args:
        table: what `read_candidates` returned.

    Raises:
        DataError: no candidates, no prompt or audio column, an axis that is not there or not
            numeric; all problems are listed together.
    """
    if not len(table):
        raise DataError("there are no candidates: the table has no rows")
    columns, problems = _text_columns(table)
    mixes: dict[str, RewardMix | None] = {}
    for axis in options.involved:
        try:
            mixes[axis] = axis_mix(table, axis)
        except UsageError as error:
            problems.append(str(error))
    heads = {axis: [axis] if mix is None else [*mix.weights] for axis, mix in mixes.items()}
    members = _member_columns(table, heads.get(options.primary, []))
    if options.min_agreement is not None and not members:
        first = [member_column(head, 0) for head in heads.get(options.primary, [])]
        problems.append(
            f"no columns {listed(first)} and on of an ensemble's members; `score --members` writes "
            "them, --model with an ensemble fills them in"
        )
    own = dict.fromkeys(name for names in (*heads.values(), *members) for name in names)
    numbers, reasons = _numbers(table, options, [*own], problems)
    if problems:
        raise DataError.listing("the candidates cannot be paired", problems)
    for axis, mix in mixes.items():
        numbers[axis] = _mixed(mix, [numbers[name] for name in heads[axis]])
    mix = mixes[options.primary]
    each = [_mixed(mix, [numbers[name] for name in names]) for names in members]
    earlier = columns.get(UNREADABLE, pa.nulls(len(table), pa.string()))
    columns[UNREADABLE] = pc.coalesce(earlier, reasons)
    return _sorted(columns, numbers, each)


def _text_columns(table: pa.Table) -> tuple[dict[str, Any], list[str]]:
    """The columns that are not numbers, under their contract names, and what is wrong with them."""
    given = {name: table[name] for name in TEXT_COLUMNS if name in table.column_names}
    path = given.pop("path", None)
    audio = given.setdefault("audio", path)
    problems = []
    if audio is None:
        problems.append("no column 'audio' with the path of each candidate")
    else:
        inside = pa.types.is_struct(audio.type)
        given["audio"] = pc.struct_field(audio, "path") if inside else audio.cast(pa.string())
    if "prompt_id" not in given and "prompt" not in given:
        problems.append("no column 'prompt_id' or 'prompt' that says which candidates compete")
    return given, problems


def _member_columns(table: pa.Table, heads: Sequence[str]) -> list[list[str]]:
    """The columns of some heads by each member of an ensemble; none for fewer than two members."""
    found: list[list[str]] = []
    names = [member_column(head, 0) for head in heads]
    while names and set(names) <= set(table.column_names):
        found.append(names)
        names = [member_column(head, len(found)) for head in heads]
    return found if len(found) > 1 else []


def _numbers(
    table: pa.Table, options: PairOptions, axes: Sequence[str], problems: list[str]
) -> tuple[dict[str, Floats], pa.Array]:
    """Columns of numbers by name, NaN where there is none, and what is unreadable in each row.

    Args:
        axes: columns that must hold numbers.
        problems: gets what is wrong.
    """
    present = table.column_names
    rulers = {RULERS + name: name for name in options.ruler_names}
    given = {name: name for name in (*axes, *MEASURED)}
    given |= {name: plain for name, plain in rulers.items() if plain not in BY_FILE}
    given |= {name: name for name in present if name.startswith(RULERS)}
    must = [*axes, *(name for name, plain in rulers.items() if plain not in BY_FILE)]
    problems += [_absent(table, name) for name in must if given[name] not in present]
    columns = {name: table[column] for name, column in given.items() if column in present}
    read, unreadable = tables.with_numbers(pa.table(columns), columns)
    numbers = {name: np.full(len(table), np.nan) for name in given}
    reasons: list[str | None] = [None] * len(table)
    matched = {"duration": options.match_duration, "loudness": options.match_loudness}
    needed = {*axes, *rulers, *(name for name, most in matched.items() if most is not None)}
    for name in columns:
        numbers[name] = read[name].cast(pa.float64()).to_numpy().astype(np.float64)
        bad = unreadable.get(name, []) if name in needed else []
        for row in bad:
            reasons[row] = reasons[row] or f"unreadable: {given[name]}"
        if name in axes and bad and np.isnan(numbers[name]).all():
            kind = table[name].type
            problems.append(f"column {name!r} holds {kind} values; an axis needs numbers")
    return numbers, pa.array(reasons, pa.string())


def _absent(table: pa.Table, name: str) -> str:
    if name.startswith(RULERS):
        return f"no column {name!r} to balance; --model rulers fills it in"
    numeric = [f.name for f in tables.with_numbers(table)[0].schema if is_number(f.type)]
    return f"no column {name!r}; the numeric columns are {listed(numeric) or 'none'}"


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _sorted(
    columns: dict[str, Any], numbers: dict[str, Floats], members: Sequence[Floats]
) -> Candidates:
    """Order rows by prompt and audio, and equal ones by all they hold."""
    columns["prompt_id"] = prompt_keys(columns)
    text = columns["prompt_id"].cast(pa.string())
    if "prompt" in columns:
        text = pc.coalesce(columns["prompt"].cast(pa.string()), text)
    table = pa.table(columns | {"prompt": text})
    keys = {name: table[name] for name in ("prompt_id", "audio", *table.column_names)}
    flat = {name: _sortable(column) for name, column in keys.items()}
    flat |= {f"number {n}": column for n, column in enumerate([*numbers.values(), *members])}
    order = pc.sort_indices(pa.table(flat), sort_keys=[(name, "ascending") for name in flat])
    table = table.take(order).combine_chunks()
    prompts = table["prompt_id"].combine_chunks().dictionary_encode("encode").indices
    at = order.to_numpy()
    return Candidates(
        table=table,
        prompt=prompts.to_numpy().astype(np.int64),
        numbers={name: column[at] for name, column in numbers.items()},
        members=np.stack(members, axis=1)[at] if members else None,
    )


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column that Arrow sorts: its cells, or text for lists and mappings."""
    if not pa.types.is_nested(column.type):
        return column
    if pa.types.is_list(column.type) and not pa.types.is_nested(column.type.value_type):
        return pc.binary_join(column.cast(pa.list_(pa.string())), "\n")
    return pa.array([tables.as_text(cell) for cell in column.to_pylist()], pa.string())


def prompt_keys(columns: Mapping[str, Any]) -> pa.ChunkedArray:
    """What tells prompts apart: the id, else the text, which counts up to case and spaces."""
    text = None if "prompt" not in columns else one_spelling(columns["prompt"])
    if "prompt_id" not in columns:
        return text
    ids = columns["prompt_id"]
    if not is_number(ids.type):
        ids = ids.cast(pa.string())
        ids = pc.if_else(pc.equal(ids, ""), pa.scalar(None, pa.string()), ids)
    if text is None or not ids.null_count:
        return ids
    return pc.coalesce(ids.cast(pa.string()), text)


def one_spelling(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts, each as the first in sorted order of those that differ in case or spaces alone."""
    coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    words = coded.dictionary.to_pylist()
    first: dict[str, str] = {}
    for word in sorted(words):
        first.setdefault(same_text(word), word)
    kept = pa.array([first[same_text(word)] for word in words], pa.string())
    return pa.chunked_array([kept.take(coded.indices)])
