"""`Battles`: two songs of one prompt with a human vote, as columns; what is left out is counted.

Rows come from a table or from Music Arena (`arena.sources`). Columns: `preference` (A, B, TIE or
BOTH_BAD); for each score NAME `NAME_a` and `NAME_b`; optional `battle_uuid` (also `battle_id`),
`system_a`, `system_b`, `is_instrumental` (bool or text), `prompt`, `date`, `user_pseudonym`.

Shape key: N = battles.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_reward.arena.cells import same_text, truth, vote_of
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.dates import read_months
from apex_reward.files.tables import mixed_columns
from apex_reward.metrics import FloatArray, IntArray, cluster_codes

BoolArray = npt.NDArray[np.bool_]

NOT_SCORES = frozenset(
    {
        "duration",
        "gateway_time",
        "generation_time",
        "sample_rate",
        "seconds",
        "segments",
        "system_time",
        "total_listening_time",
    }
)
"""Numeric NAME_a, NAME_b pairs of the Music Arena layout that are no scores; name one to use it."""


@dataclass(frozen=True)
class Battles:
    """N battles with a readable vote, in input order.

    Attributes:
        n_read: battles read, kept or not.
        uuid: (N,) text, empty where not given.
        vote: (N,) text: A, B, TIE or BOTH_BAD.
        system: (N, 2) names of A's and B's system, empty where not given; one spelling each.
        instrumental: (N,) 1.0 instrumental, 0.0 vocal, NaN not known.
        prompt: (N,) text with spaces and case evened out, empty where not given.
        month: (N,) text YYYY-MM, empty where not given.
        scores: name -> (N, 2) score of A and of B, NaN where missing.
        audio: (N, 2) paths of the songs as they are given, empty where not given.
        dropped: reason -> battles left out before this point.
        notes: what a reader should know about the data, a sentence each.
    """

    n_read: int
    uuid: npt.NDArray[np.str_]
    vote: npt.NDArray[np.str_]
    system: npt.NDArray[np.str_]
    instrumental: FloatArray
    prompt: npt.NDArray[np.str_]
    month: npt.NDArray[np.str_]
    scores: Mapping[str, FloatArray]
    audio: npt.NDArray[np.str_]
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
        return np.asarray((self.system != "").all(axis=1), dtype=np.bool_)

    @property
    def has_prompts(self) -> bool:
        """Whether any battle names its prompt."""
        return bool((self.prompt != "").any())

    @property
    def clusters(self) -> IntArray:
        """(N,) number of each battle's prompt; a battle without one is a cluster of its own."""
        own = np.array([f"\0{index}" for index in range(len(self))])
        return cluster_codes(np.where(self.prompt == "", own, self.prompt))

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
        return replace(
            self,
            uuid=self.uuid[keep],
            vote=self.vote[keep],
            system=self.system[keep],
            instrumental=self.instrumental[keep],
            prompt=self.prompt[keep],
            month=self.month[keep],
            audio=self.audio[keep],
            scores={name: pair[keep] for name, pair in self.scores.items()},
        )


def battles_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    scores: Sequence[str] | None = None,
    dropped: Mapping[str, int] | None = None,
) -> Battles:
    """Battles of rows, after counting out unknown votes and repeated `battle_uuid`s.

    Args:
        rows: one mapping per battle.
        scores: score names to read; without it every NAME with numeric `NAME_a` and `NAME_b`.
        dropped: reasons counted by whoever selected `rows`.

    Raises:
        DataError: no rows, or no `preference` column.
        UsageError: a named score without its two columns.
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
    names = score_names(rows) if scores is None else list(dict.fromkeys(scores))
    absent = [name for name in names if not {f"{name}_a", f"{name}_b"} <= columns]
    if absent:
        raise UsageError(
            f"no columns {', '.join(f'{name}_a and {name}_b' for name in absent)}; "
            f"scores in this file: {listed(score_names(rows)) or 'none'}"
        )
    kept = _known_and_unique(rows, counts)
    if not kept:
        raise DataError("no battle has a vote of A, B, TIE or BOTH_BAD" + _why(counts))
    systems, notes = _one_spelling(kept)
    instrumental = np.array([truth(row.get("is_instrumental")) for row in kept])
    unknown = int(np.isnan(instrumental).sum())
    if 0 < unknown < len(kept):
        notes.append(
            f"{unknown} battles do not say whether they are instrumental; they count overall"
        )
    months, dates = read_months(row.get("date") for row in kept)
    notes += [*dates.notes("dates"), *_mixed(kept)]
    return Battles(
        n_read=n_read,
        uuid=np.array([uuid_of(row) for row in kept], dtype=np.str_),
        vote=np.array([vote_of(row.get("preference")) for row in kept], dtype=np.str_),
        system=systems,
        instrumental=instrumental,
        prompt=np.array([_prompt(row) for row in kept], dtype=np.str_),
        month=np.array(months, dtype=np.str_),
        scores={name: _score_pair(kept, name) for name in names},
        audio=np.array([[audio_name(row, side) for side in "ab"] for row in kept], dtype=np.str_),
        dropped={"TIE": 0, "BOTH_BAD": 0, "missing_score": 0, **counts},
        notes=tuple(notes),
    )


def _mixed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence per column that is written in several ways."""
    return [
        f"column {name} holds "
        + " and ".join(f"{kind} in {count} battles" for kind, count in counts.items())
        + (
            "; it is read with --score only, text as missing"
            if name[-2:] in ("_a", "_b") and "number" in counts
            else ""
        )
        for name, counts in mixed_columns(rows).items()
    ]


def score_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every NAME with numeric columns `NAME_a` and `NAME_b`, in the order of the columns."""
    columns = dict.fromkeys(name for row in rows for name in row)
    stems = [name[:-2] for name in columns if name.endswith("_a") and f"{name[:-2]}_b" in columns]
    return [
        stem
        for stem in stems
        if stem not in NOT_SCORES and all(_numeric(rows, f"{stem}_{side}") for side in "ab")
    ]


def _numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row.get(column) for row in rows]
    given = [value for value in values if value is not None]
    return bool(given) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in given
    )


def _known_and_unique(
    rows: Sequence[Mapping[str, Any]], counts: Counter[str]
) -> list[Mapping[str, Any]]:
    kept, seen = [], set()
    for row in rows:
        uuid = uuid_of(row)
        if vote_of(row.get("preference")) == "":
            counts["unknown_vote"] += 1
        elif uuid and uuid in seen:
            counts["duplicate"] += 1
        else:
            seen.add(uuid)
            kept.append(row)
    return kept


def uuid_of(row: Mapping[str, Any]) -> str:
    """A battle's `battle_uuid` (or `battle_id`), empty text without one."""
    value = row.get("battle_uuid")
    value = row.get("battle_id") if value is None else value
    return "" if value is None else str(value).strip()


def _prompt(row: Mapping[str, Any]) -> str:
    """The prompt; without one, what was compared: votes on the same songs hang together."""
    return same_text(row.get("prompt")) or same_text(row.get("comparison"))


def audio_name(row: Mapping[str, Any], side: str) -> str:
    """Path of the song of side `a` or `b` as the battle gives it, empty text without one."""
    value = row.get(f"audio_{side}")
    if isinstance(value, Mapping):  # the hub's audio feature
        value = value.get("path")
    return str(value) if value else ""


def _one_spelling(rows: Sequence[Mapping[str, Any]]) -> tuple[npt.NDArray[np.str_], list[str]]:
    """(N, 2) system names, each written as it is written most often, and what was merged."""
    given = [[str(row.get(f"system_{side}") or "").strip() for side in "ab"] for row in rows]
    spellings: dict[str, Counter[str]] = {}
    for name in (name for pair in given for name in pair):
        spellings.setdefault(_system_key(name), Counter())[name] += 1
    chosen = {key: counts.most_common(1)[0][0] for key, counts in spellings.items()}
    notes = [
        f"{' and '.join(sorted(counts))} were read as one system, {chosen[key]}"
        for key, counts in spellings.items()
        if len(counts) > 1
    ]
    systems = np.array([[chosen[_system_key(name)] for name in pair] for pair in given])
    return systems.astype(np.str_), notes


def _system_key(name: str) -> str:
    return "-".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _score_pair(rows: Sequence[Mapping[str, Any]], name: str) -> FloatArray:
    return np.array([[_number(row.get(f"{name}_{side}")) for side in "ab"] for row in rows])


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _why(counts: Mapping[str, int]) -> str:
    given = [f"{count} {reason}" for reason, count in counts.items() if count]
    return f" ({', '.join(given)})" if given else ""
