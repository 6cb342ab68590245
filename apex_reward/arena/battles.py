"""`Battles`: two songs of one prompt with a human vote, as columns.

Columns of a battle table: `preference` (A, B, TIE or BOTH_BAD); for each score NAME `NAME_a` and
`NAME_b`; optional `battle_uuid` (or `battle_id`), `system_a`, `system_b`, `is_instrumental` (yes
or no), `prompt`, `date`, `user_pseudonym`. Scores named `rulers.NAME` are plain measures of the
songs.

A cell that should hold a number and holds something else is unreadable: the battle counts for the
other scores. The order of rows changes no figure: the battles are sorted by `battle_uuid`, and
by their other cells where it is absent.

Shape key: N = battles.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.dates import read_months
from apex_reward.files.tables import plain_types, table_of, with_numbers
from apex_reward.metrics import FloatArray, IntArray, cluster_codes
from apex_reward.prompt import same_text

BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.str_]
Row = Mapping[str, Any]

VOTES = ("A", "B", "TIE", "BOTH_BAD")
RULERS = "rulers."
"""What the names of rulers begin with in a battle table."""
NOT_SCORES = frozenset(
    ["audio", "duration", "error", "gateway_time", "generation_time", "sample_rate", "seconds"]
) | {"segments", "system", "system_time", "total_listening_time"}
"""NAME_a, NAME_b pairs of numbers that are not scores, unless `--score NAME` asks for them."""
_YES = frozenset(("true", "t", "yes", "y", "1", "instrumental"))
_NO = frozenset(("false", "f", "no", "n", "0", "vocal"))


@dataclass(frozen=True)
class Battles:
    """N battles with a readable vote, in the order of their rows.

    Attributes:
        n_read: battles read, kept or not.
        uuid: (N,) text, empty where absent.
        vote: (N,) text: A, B, TIE or BOTH_BAD.
        system: (N, 2) names of A's and B's system, empty where absent; one spelling each.
        pair: (N,) `X vs Y`, the two systems in alphabetical order; empty where one is absent.
        instrumental: (N,) 1.0 instrumental, 0.0 vocal, NaN not known.
        prompt: (N,) text in one case and with single spaces, empty where absent.
        clusters: (N,) number of the prompt; a battle without one has a number of its own.
        month: (N,) text YYYY-MM, empty where absent.
        audio: (N, 2) paths of the songs as the table has them, empty where absent.
        unreadable: (N,) whether a cell of a score is unreadable.
        rank: (N,) place of each battle in the sorted order.
        scores: name -> (N, 2) score of A and of B, NaN where missing or unreadable.
        by: column -> (N,) text of the columns that figures are asked by.
        dropped: reason -> battles left out before this point.
        notes: facts about the data for the reader, a sentence each.
    """

    n_read: int
    uuid: TextArray
    vote: TextArray
    system: TextArray
    pair: TextArray
    instrumental: FloatArray
    prompt: TextArray
    clusters: IntArray
    month: TextArray
    audio: TextArray
    unreadable: BoolArray
    rank: IntArray
    scores: Mapping[str, FloatArray]
    by: Mapping[str, TextArray]
    dropped: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.vote)

    @property
    def decided(self) -> BoolArray:
        """(N,) whether the vote was A or B."""
        return np.asarray(np.isin(self.vote, ("A", "B")), dtype=np.bool_)

    @property
    def a_won(self) -> BoolArray:
        """(N,) whether A got the vote."""
        return np.asarray(self.vote == "A", dtype=np.bool_)

    @property
    def has_systems(self) -> BoolArray:
        """(N,) whether both systems are named."""
        return np.asarray(self.pair != "", dtype=np.bool_)

    @property
    def has_prompts(self) -> bool:
        """Whether any battle names its prompt."""
        return bool((self.prompt != "").any())

    def difference(self, name: str) -> FloatArray:
        """(N,) score of A minus score of B; NaN where either is missing."""
        if name not in self.scores:
            raise UsageError(
                f"no score {name!r}: it needs the columns {name}_a and {name}_b; "
                f"scores here: {listed(self.scores) or 'none'}"
            )
        return self.scores[name][:, 0] - self.scores[name][:, 1]

    def select(self, keep: BoolArray | IntArray) -> Battles:
        """The battles of a mask or of row numbers; counts and notes stay as they are."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                changed[field.name] = value[keep]
            elif field.name in ("scores", "by"):
                changed[field.name] = {name: column[keep] for name, column in value.items()}
        return replace(self, **changed)

    def sorted(self) -> Battles:
        """The battles in the order that does not depend on the order of their rows."""
        return self.select(np.argsort(self.rank))


def battles_of(
    rows: Sequence[Row],
    *,
    scores: Sequence[str] | None = None,
    by: Sequence[str] = (),
    dropped: Mapping[str, int] | None = None,
) -> Battles:
    """Battles of rows, without unknown votes and repeated `battle_uuid`s.

    Args:
        rows: one mapping per battle.
        scores: score names to read, beside the rulers. None: every NAME with numeric `NAME_a` and
            `NAME_b`.
        by: columns that figures are asked by.
        dropped: reasons counted before.

    Raises:
        DataError: no rows, or no `preference` column.
        UsageError: a named score without its two columns, or a column of `by` that is absent.
    """
    counts = Counter(dropped or {})
    n_read = len(rows) + sum(counts.values())
    columns = set().union(*rows) if rows else set()
    if not rows:
        raise DataError("there are no battles to read" + _why(counts))
    if "preference" not in columns:
        raise DataError(
            f"battles need a column 'preference'; columns: {listed(sorted(columns), 20)}"
        )
    keys = [(uuid_of(row), json.dumps(row, sort_keys=True, default=str)) for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    there = score_names([rows[place] for place in order])
    rulers = [name for name in there if name.startswith(RULERS)]
    names = there if scores is None else list(dict.fromkeys([*scores, *rulers]))
    absent = [name for name in names if not {f"{name}_a", f"{name}_b"} <= columns]
    if absent:
        raise UsageError(
            f"no columns {', '.join(f'{name}_a and {name}_b' for name in absent)}; "
            f"scores in this file: {listed(there) or 'none'}"
        )
    if unknown := sorted(set(by) - columns):
        raise UsageError(
            f"no column {', '.join(unknown)} for --by; columns: {listed(sorted(columns), 20)}"
        )
    kept = _known_and_unique(rows, order, counts)
    if not kept:
        raise DataError("no battle has a vote of A, B, TIE or BOTH_BAD" + _why(counts))
    # Everything is read in the sorted order, then laid in the order of the rows.
    battles = _read([rows[place] for place in kept], names, by, counts, n_read)
    return battles.select(np.argsort(kept))


def _known_and_unique(rows: Sequence[Row], order: Sequence[int], counts: Counter[str]) -> list[int]:
    """Places of the rows to keep, in the sorted order; the others are counted."""
    kept, seen = [], set()
    for place in order:
        uuid = uuid_of(rows[place])
        if vote_of(rows[place].get("preference")) == "":
            counts["unknown_vote"] += 1
        elif uuid and uuid in seen:
            counts["duplicate"] += 1
        else:
            seen.add(uuid)
            kept.append(place)
    return kept


def _read(
    rows: Sequence[Row], names: Sequence[str], by: Sequence[str], counts: Counter[str], n_read: int
) -> Battles:
    """Columns of sorted rows."""
    system, notes = _one_spelling(rows)
    instrumental = np.array([truth(row.get("is_instrumental")) for row in rows])
    unknown = int(np.isnan(instrumental).sum())
    if 0 < unknown < len(rows):
        notes.append(
            f"{unknown} battles do not say whether they are instrumental; they count overall"
        )
    months, dates = read_months(row.get("date") for row in rows)
    pairs = score_pairs(rows, names)
    bad = {name: np.isinf(pair).any(axis=1) for name, pair in pairs.items()}
    notes += [*dates.notes("dates")]
    notes += [f"{name} is unreadable in {at.sum()} battles" for name, at in bad.items() if at.any()]
    # Without a prompt, votes on the same two songs belong together.
    prompts = [same_text(row.get("prompt")) or same_text(row.get("comparison")) for row in rows]
    units = [prompt or f"\0{place:09d}" for place, prompt in enumerate(prompts)]
    return Battles(
        n_read=n_read,
        uuid=_text(map(uuid_of, rows)),
        vote=_text(vote_of(row.get("preference")) for row in rows),
        system=system,
        pair=_text(" vs ".join(sorted(two)) if all(two) else "" for two in system.tolist()),
        instrumental=instrumental,
        prompt=_text(prompts),
        clusters=cluster_codes(units),
        month=_text(months),
        audio=_text([audio_name(row, side) for side in "ab"] for row in rows),
        unreadable=np.logical_or.reduce([np.zeros(len(rows), np.bool_), *bad.values()]),
        rank=np.arange(len(rows)),
        scores={name: np.where(np.isinf(pair), math.nan, pair) for name, pair in pairs.items()},
        by={column: _text(_label(row.get(column)) for row in rows) for column in by},
        dropped={"TIE": 0, "BOTH_BAD": 0, "missing_score": 0, **counts},
        notes=tuple(notes),
    )


def numbers_of(
    rows: Sequence[Row], columns: Sequence[str], *, numeric: bool = False
) -> dict[str, FloatArray]:
    """(N,) numbers of columns: NaN where a cell is empty, infinite where it is no plain number.

    Args:
        numeric: only columns of which at least half of the filled cells are numbers.

    >>> numbers_of([{"s": "4.2"}, {"s": ""}, {"s": True}, {}], ["s"])["s"].tolist()
    [4.2, nan, inf, nan]
    """
    table = table_of([{name: row.get(name) for name in columns} for row in rows])
    table, unreadable = with_numbers(plain_types(table), None if numeric else columns)
    found = {}
    for name in table.column_names:
        if pa.types.is_floating(table[name].type) or pa.types.is_integer(table[name].type):
            found[name] = np.array(table[name].to_numpy(), dtype=np.float64)
            found[name][unreadable.get(name, [])] = math.inf
    return found


def score_pairs(rows: Sequence[Row], names: Sequence[str]) -> dict[str, FloatArray]:
    """(N, 2) scores of A and of B by name, as `numbers_of` reads them."""
    numbers = numbers_of(rows, [f"{name}_{side}" for name in names for side in "ab"])
    return {n: np.stack([numbers[f"{n}_a"], numbers[f"{n}_b"]], axis=1) for n in names}


def score_names(rows: Sequence[Row]) -> list[str]:
    """Every NAME whose columns `NAME_a` and `NAME_b` hold numbers in at least half of their cells.

    Cells that are empty do not count. The names are in the order of the columns.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    sides = [n for n in columns if n.endswith(("_a", "_b")) and n[:-2] not in NOT_SCORES]
    numbers = numbers_of(rows, sides, numeric=True)
    stems = dict.fromkeys(name[:-2] for name in numbers if name.endswith("_a"))
    return [stem for stem in stems if f"{stem}_b" in numbers]


def vote_of(cell: Any) -> str:
    """One of `VOTES`, or empty text for any other vote.

    >>> vote_of("both bad"), vote_of(" a"), vote_of("left"), vote_of(None)
    ('BOTH_BAD', 'A', '', '')
    """
    text = "" if cell is None else str(cell).strip().upper().replace("-", "_").replace(" ", "_")
    return text if text in VOTES else ""


def truth(cell: Any) -> float:
    """1.0 for yes, 0.0 for no (bool, number or text), NaN for nothing or another text.

    >>> truth(True), truth("False"), truth(1), truth("")
    (1.0, 0.0, 1.0, nan)
    """
    text = "" if cell is None else str(cell).strip().casefold().removesuffix(".0")
    return 1.0 if text in _YES else 0.0 if text in _NO else math.nan


def uuid_of(row: Row) -> str:
    """A battle's `battle_uuid` (or `battle_id`), empty text without one."""
    value = row.get("battle_uuid")
    value = row.get("battle_id") if value is None else value
    return "" if value is None else str(value).strip()


def audio_name(row: Row, side: str) -> str:
    """Path of the song of side `a` or `b` as the battle has it, empty text without one."""
    value = row.get(f"audio_{side}")
    if isinstance(value, Mapping):  # the hub's audio feature
        value = value.get("path")
    return str(value) if value else ""


def _one_spelling(rows: Sequence[Row]) -> tuple[TextArray, list[str]]:
    """(N, 2) system names in their most frequent spelling, and a note on each merged name."""
    cells = [[str(row.get(f"system_{side}") or "").strip() for side in "ab"] for row in rows]
    keys = [["-".join(re.split(r"[\s_-]+", n.casefold())).strip("-") for n in two] for two in cells]
    spellings: dict[str, Counter[str]] = {}
    for key, name in zip(chain(*keys), chain(*cells), strict=True):
        spellings.setdefault(key, Counter())[name] += 1
    chosen = {key: max(sorted(counts), key=counts.__getitem__) for key, counts in spellings.items()}
    notes = [
        f"{' and '.join(sorted(counts))} were read as one system, {chosen[key]}"
        for key, counts in sorted(spellings.items())
        if len(counts) > 1
    ]
    return np.array([[chosen[key] for key in two] for two in keys], dtype=np.str_), notes


def _label(cell: Any) -> str:
    if isinstance(cell, float) and math.isnan(cell):
        return ""
    return "" if cell is None else " ".join(str(cell).split())


def _text(values: Any) -> TextArray:
    return np.array(list(values), dtype=np.str_)


def _why(counts: Mapping[str, int]) -> str:
    reasons = [f"{count} {reason}" for reason, count in counts.items() if count]
    return f" ({', '.join(reasons)})" if reasons else ""
