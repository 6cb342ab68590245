"""Platform metadata under one set of names: column presets and explicit columns.

| field | meaning | Suno | Udio | plain |
|---|---|---|---|---|
| audio_id | unique per song | id | id | audio_id, id, track_id, song_id |
| path | audio file, relative to the audio folder | path | path | path, audio, file, filename |
| platform | where the song is from | platform, else `suno` | platform, else `udio` | platform |
| streams | times played | play_count | plays | streams, play_count, plays |
| likes | likes or upvotes | upvote_count | likes | likes, upvote_count, like_count |
| released | date or time of release | created_at | published_at, created_at | released, ... |

A table without a path column names its audio `<audio_id>.mp3`. Songs are columns, not objects: a
million rows are read in the time that their file takes.

Shape key: N = songs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.dates import read_dates
from apex_reward.files.tables import NOTHING, read_table

Moments = npt.NDArray[np.datetime64[Any]]
FIELDS = ("audio_id", "path", "platform", "streams", "likes", "released")
REQUIRED = ("audio_id", "streams", "likes")
ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?"
ZONE = r"(Z|[+-]\d{2}:?\d{2})$"
AHEAD = timedelta(days=2)  # clocks and zones differ
PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "suno": {
        "audio_id": ("id", "audio_id"),
        "path": ("path", "audio_path"),
        "platform": ("platform",),
        "streams": ("play_count",),
        "likes": ("upvote_count",),
        "released": ("created_at",),
    },
    "udio": {
        "audio_id": ("id", "audio_id"),
        "path": ("path", "audio_path"),
        "platform": ("platform",),
        "streams": ("plays",),
        "likes": ("likes",),
        "released": ("published_at", "created_at"),
    },
    "plain": {
        "audio_id": ("audio_id", "id", "track_id", "song_id"),
        "path": ("path", "audio", "audio_path", "file", "filename"),
        "platform": ("platform", "source"),
        "streams": ("streams", "play_count", "plays", "listens"),
        "likes": ("likes", "upvote_count", "like_count"),
        "released": ("released", "release_date", "published_at", "created_at", "date"),
    },
}


@dataclass
class Songs:
    """N rows of metadata in columns.

    Attributes:
        audio_id, path, platform: texts; empty where there is none.
        streams, likes: (N,) counts, NaN where a cell is missing, negative or unreadable.
        released: (N,) UTC, NaT where there is no date that can be used.
        unreadable: column of the first unreadable count, by row.
        undated: what is wrong with a date that is not used, by row.
    """

    audio_id: pa.Array
    path: pa.Array
    platform: pa.Array
    streams: npt.NDArray[np.float64]
    likes: npt.NDArray[np.float64]
    released: Moments
    unreadable: dict[int, str] = field(default_factory=dict)
    undated: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.streams)

    @classmethod
    def joined(cls, parts: Sequence[Songs]) -> Songs:
        """The rows of several tables, one after the other."""
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        texts = [pa.concat_arrays([getattr(p, f) for p in parts]) for f in FIELDS[:3]]
        numbers = [np.concatenate([getattr(p, f) for p in parts]) for f in FIELDS[3:]]
        notes: list[dict[int, str]] = [
            {start + row: text for start, part in zip(starts, parts, strict=False)
             for row, text in getattr(part, name).items()}
            for name in ("unreadable", "undated")
        ]  # fmt: skip
        return cls(*texts, *numbers, *notes)


def read_metadata(
    path: Path, preset: str = "auto", columns: Mapping[str, str] | None = None
) -> Songs:
    """The songs of one table of metadata, in its order.

    Args:
        path: `.csv`, `.jsonl` or `.parquet`.
        preset: `suno`, `udio`, `plain`, or `auto`: the first preset with all needed columns.
        columns: columns by field, over the preset's.

    Raises:
        UsageError: an unknown preset or field.
        DataError: needed columns are missing.
    """
    named = columns or {}
    table = read_table(path, text=[named["audio_id"]] if "audio_id" in named else ())
    name, chosen = choose_columns(path, table.column_names, preset, named)
    nothing = pa.chunked_array([pa.nulls(len(table), pa.string())])
    cells = {f: table[chosen[f]] if f in chosen else nothing for f in FIELDS}
    ids, files, platforms = (_texts(cells[f]) for f in FIELDS[:3])
    default = name if name in ("suno", "udio") else ""
    unreadable: dict[int, str] = {}
    counts = []
    for column in ("likes", "streams"):  # streams last: its name stays where both are unreadable
        values, bad = counts_of(cells[column])
        counts.append(values)
        unreadable |= dict.fromkeys(np.flatnonzero(bad).tolist(), chosen[column])
    released, undated = dates_of(cells["released"])
    return Songs(
        ids,
        pc.if_else(pc.equal(files, ""), pc.binary_join_element_wise(ids, ".mp3", ""), files),
        pc.if_else(pc.equal(platforms, ""), default, platforms),
        counts[1],
        counts[0],
        released,
        unreadable,
        undated,
    )


def choose_columns(
    path: Path, present: Sequence[str], preset: str, columns: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """The preset that fits a table, and its column for every field that it has."""
    if preset != "auto" and preset not in PRESETS:
        raise UsageError(f"preset is {preset!r}; expected auto, {', '.join(PRESETS)}")
    unknown = [column for column in columns.values() if column not in present]
    if unknown:
        raise DataError(f"{path} has no column {listed(unknown)}; it has {listed(present, 20)}")
    missing: list[str] = []
    for name in PRESETS if preset == "auto" else (preset,):
        found = {
            field: next(column for column in names if column in present)
            for field, names in PRESETS[name].items()
            if any(column in present for column in names)
        }
        # With all columns named by hand nothing speaks for a platform's preset.
        fits = preset != "auto" or name == "plain" or "streams" in found
        found |= columns
        missing = [field for field in REQUIRED if field not in found]
        if fits and not missing:
            return name, found
    raise DataError(
        f"{path} has no column for {listed(missing)}; it has {listed(present, 20)}. Name them with "
        "--id-column, --streams-column, --likes-column"
    )


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """Cells as text, empty where there is none."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return pc.fill_null(column.cast(pa.string()).combine_chunks(), "")
    return pa.array(["" if cell is None else str(cell) for cell in column.to_pylist()], pa.string())


def counts_of(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(N,) counts of a column, NaN where there is none, and (N,) which cells are unreadable.

    A cell is unreadable that is neither missing nor a number: other text, true and false, lists.
    """
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        values = column.cast(pa.float64()).to_numpy().astype(np.float64)
        bad = np.isinf(values)
        return np.where(bad | (values < 0), np.nan, values), bad
    if not pa.types.is_string(kind):
        return np.full(len(column), np.nan), np.asarray(pc.is_valid(column), bool)
    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    known = [count_of(text) for text in texts]
    table = np.array([*(math.nan if value is None else value for value in known), math.nan])
    odd = [v is None and not _is_nothing(t) for v, t in zip(known, texts, strict=True)]
    codes = np.asarray(encoded.indices.fill_null(len(texts)), np.int64)
    return table[codes], np.array([*odd, False])[codes]


def _is_nothing(text: str) -> bool:
    """Whether a text stands for a missing cell, or for a negative number."""
    return text.strip() in NOTHING or re.fullmatch(r"-\d+(\.\d*)?", text.strip()) is not None


def dates_of(column: pa.ChunkedArray) -> tuple[Moments, dict[int, str]]:
    """(N,) moments in UTC of a column, NaT where there is none, and what is wrong by row.

    ISO dates are read together; the others as `apex_reward.files.dates` reads them.
    """
    moments: Moments = np.full(len(column), np.datetime64("NaT", "us"))
    rest = np.asarray(pc.is_valid(column), bool)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        moments, rest = _microseconds(column.cast(pa.timestamp("us"), safe=False)), rest & False
    elif pa.types.is_string(column.type):
        for pattern, kind in (
            (ISO + "$", pa.timestamp("us")),
            (ISO + ZONE, pa.timestamp("us", "UTC")),
        ):
            iso = np.asarray(pc.fill_null(pc.match_substring_regex(column, pattern), False), bool)
            try:
                moments[iso] = _microseconds(column.filter(pa.array(iso)).cast(kind))
                rest &= ~iso
            except pa.ArrowInvalid:  # as 2024-02-30: one by one
                continue
    others = np.flatnonzero(rest)
    dates = read_dates(column.filter(pa.array(rest)).to_pylist())
    moments[others] = [
        np.datetime64("NaT", "us") if m is None else np.datetime64(m.replace(tzinfo=None), "us")
        for m in dates.moments
    ]
    wrong = {int(others[row]): f"cannot be read: {cell}" for row, cell in dates.unread.items()}
    wrong |= {int(others[row]): f"in the future: {cell}" for row, cell in dates.future.items()}
    latest = np.datetime64((datetime.now(UTC) + AHEAD).replace(tzinfo=None), "us")
    for row in np.flatnonzero(moments > latest).tolist():
        wrong[row] = f"in the future: {column[row].as_py()}"
        moments[row] = np.datetime64("NaT", "us")
    return moments, wrong


def _microseconds(column: pa.ChunkedArray) -> Moments:
    return column.cast(pa.timestamp("us")).to_numpy().astype("datetime64[us]")


def count_of(value: Any) -> float | None:
    """A count as a number; None for what is missing, negative or no number.

    Commas part thousands (or, before K, M or B, a decimal: `1,2M`); K, M and B multiply.

    >>> count_of("1,204"), count_of("381K"), count_of("1.2M"), count_of(-1), count_of("many")
    (1204.0, 381000.0, 1200000.0, None, None)
    """
    factor = 1.0
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        found = _COUNT.fullmatch(value.strip())
        if found is None:
            return None
        text, factor = found[1], _FACTORS[(found[2] or "").upper()]
        if factor > 1 and re.fullmatch(r"\d+,\d{1,2}", text):
            text = text.replace(",", ".")
        value = text.replace(",", "")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    # Rounded: 1.2 million is 1200000 whatever the product of the floats says.
    return round(number * factor, 6) if 0 <= number < math.inf else None


_COUNT = re.compile(
    r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+,\d{1,2}(?=\s*[KMB])|\d+(?:\.\d*)?(?:e\+?\d+)?)\s*([KMB]?)",
    re.IGNORECASE,
)
_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
