"""Candidates of any source as columns in one canonical order, so that input order never matters.

Shape key: N = candidates, P = prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apex_reward.errors import DataError, UsageError
from apex_reward.pairs.axes import Floats, axis_values, is_number, measure, member_values

if TYPE_CHECKING:
    import pyarrow as pa

Integers = npt.NDArray[np.int64]

TEXT_COLUMNS = ("prompt_id", "prompt", "audio", "path", "group", "error", "flags", "tokens")
MEASURES = ("duration", "loudness")


@dataclass(frozen=True)
class Candidates:
    """N candidates, sorted by prompt, then audio, then everything else they hold.

    Attributes:
        table: the columns `prompt_id`, `prompt`, `audio`, and `group`, `error`, `flags`, `tokens`
            where given. `prompt` is the text, or the id as text where there is none.
        prompt: (N,) number of each candidate's prompt, ascending from 0.
        has_prompt: (N,) False where a candidate names no prompt.
        axes: (N,) values by axis name, NaN where there is none.
        duration: (N,) seconds, NaN where not given.
        loudness: (N,) LUFS, NaN where not given.
        members: (N, M) what each member of an ensemble says of the primary axis; None where that
            is not known.
    """

    table: pa.Table
    prompt: Integers
    has_prompt: npt.NDArray[np.bool_]
    axes: dict[str, Floats]
    duration: Floats
    loudness: Floats
    members: Floats | None = None

    def __len__(self) -> int:
        return len(self.prompt)

    def column(self, name: str) -> list[Any] | None:
        """A column of `table` as a list, None where it was not given."""
        return self.table[name].to_pylist() if name in self.table.column_names else None


def arrange(table: pa.Table, axes: Sequence[str], agreement: bool = False) -> Candidates:
    """Check the columns and put the candidates into canonical order.

    Args:
        table: what `read_candidates` returned.
        axes: names of numeric columns, or mixes of heads, the primary one first.
        agreement: whether what the members say of the primary axis is needed.

    Raises:
        DataError: no candidates, no prompt or audio column, an axis that is not there or not
            numeric; all problems are listed together.
    """
    columns, problems = _basic_columns(table)
    values: dict[str, Floats] = {}

    def read(name: str, read_values: Callable[[pa.Table, str], Floats], key: str) -> None:
        try:
            values[key] = read_values(table, name)
        except (DataError, UsageError) as error:
            problems.append(str(error))

    for axis in axes:
        read(axis, axis_values, axis)
    for name in MEASURES:
        read(name, measure, f" {name}")  # a space: no axis is called that
    members: Floats | None = None
    try:
        if axes and axes[0] in values:  # else the axis is a problem already
            members = member_values(table, axes[0], agreement)
    except DataError as error:
        problems.append(str(error))
    if members is not None:
        values |= {f" member {i}": column for i, column in enumerate(members.T)}
    if not len(table):
        problems = ["there are no candidates: the table has no rows"]
    if problems:
        raise DataError.listing("the candidates cannot be paired", problems)
    return _sorted(columns, values)


def _basic_columns(table: pa.Table) -> tuple[dict[str, Any], list[str]]:
    """The columns that are not numbers, under their contract names, and what is wrong with them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    given = {name: table[name] for name in TEXT_COLUMNS if name in table.column_names}
    audio = given.pop("path", None)
    given.setdefault("audio", audio)
    problems = []
    if given["audio"] is None:
        problems.append("no column 'audio' with the path of each candidate")
    elif pa.types.is_struct(given["audio"].type):  # an Audio feature of `datasets`
        given["audio"] = pc.struct_field(given["audio"], "path")
    if "prompt_id" not in given and "prompt" not in given:
        problems.append("no column 'prompt_id' or 'prompt' that says which candidates compete")
    return given, problems


def _sorted(columns: dict[str, Any], values: dict[str, Floats]) -> Candidates:
    import pyarrow as pa
    import pyarrow.compute as pc

    audio = columns["audio"].cast(pa.string())
    key = _prompt_keys(columns)
    table = pa.table({**columns, "prompt_id": key, "audio": audio, **values})
    order = pc.sort_indices(table, sort_keys=[("prompt_id", "ascending"), ("audio", "ascending")])
    table = _order_equals(table.take(order).combine_chunks())
    key = table["prompt_id"].combine_chunks()
    has_prompt = key.is_valid().to_numpy(zero_copy_only=False)
    changes = np.zeros(len(table), np.int64)
    if len(table) > 1:
        same = pc.fill_null(pc.equal(key[1:], key[:-1]), False)
        changes[1:] = ~same.to_numpy(zero_copy_only=False)
    own = [name for name in values if name.startswith(" member ")]
    return Candidates(
        table=_with_prompt_text(table.select([*{**columns, "prompt_id": 0, "audio": 0}])),
        prompt=np.cumsum(changes),
        has_prompt=has_prompt,
        axes={n: table[n].to_numpy() for n in values if not n.startswith(" ")},
        duration=table[" duration"].to_numpy(),
        loudness=table[" loudness"].to_numpy(),
        members=np.stack([table[name].to_numpy() for name in own], axis=1) if own else None,
    )


def _prompt_keys(columns: dict[str, Any]) -> pa.ChunkedArray:
    """What tells prompts apart: the id, else the text.

    A row with a text and no id belongs to the id that other rows of that text name, if there is
    just one; so a table where only some rows carry ids does not split a prompt in two.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    text = columns.get("prompt")
    text = None if text is None else text.cast(pa.string())
    if "prompt_id" not in columns:
        return text
    ids = columns["prompt_id"]
    if pa.types.is_null(ids.type) or not is_number(ids.type):
        ids = ids.cast(pa.string())
        ids = pc.if_else(pc.equal(ids, ""), pa.scalar(None, pa.string()), ids)
    if text is None or not ids.null_count:
        return ids
    known: dict[str, set[str]] = {}
    both = pa.table({"text": text, "id": ids.cast(pa.string())}).group_by(["text", "id"])
    for row in both.aggregate([]).to_pylist():
        if row["id"] is not None and row["text"] is not None:
            known.setdefault(row["text"], set()).add(row["id"])
    only = {name: ids_of.pop() for name, ids_of in known.items() if len(ids_of) == 1}
    stand_in = pa.chunked_array([[only.get(t, t) for t in text.to_pylist()]], pa.string())
    return pc.coalesce(ids.cast(pa.string()), stand_in)


def _order_equals(table: pa.Table) -> pa.Table:
    """Order rows of one prompt and audio by all they hold, so that input order cannot show."""
    import pyarrow.compute as pc

    if len(table) < 2:
        return table
    same = np.ones(len(table) - 1, bool)
    for name in ("prompt_id", "audio"):
        column = table[name].combine_chunks()
        equal = pc.equal(column[1:], column[:-1])
        both_null = pc.and_(column[1:].is_null(), column[:-1].is_null())
        same &= pc.coalesce(equal, both_null).to_numpy(zero_copy_only=False)
    if not same.any():
        return table
    run = np.concatenate([[0], np.cumsum(~same)])
    repeated = np.zeros(len(table), bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    rows = np.flatnonzero(repeated)
    texts = [json.dumps(row, sort_keys=True, default=str) for row in table.take(rows).to_pylist()]
    order = np.arange(len(table))
    order[rows] = rows[sorted(range(len(rows)), key=lambda i: (run[rows[i]], texts[i]))]
    return table.take(order).combine_chunks()


def _with_prompt_text(table: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = table["prompt_id"].cast(pa.string())
    if "prompt" in table.column_names:
        given = table["prompt"].cast(pa.string())
        table, text = table.drop_columns(["prompt"]), pc.coalesce(given, text)
    return table.append_column("prompt", text)
