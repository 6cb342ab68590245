"""Platform metadata under one set of names: column presets and explicit columns.

| field | meaning | Suno | Udio | plain |
|---|---|---|---|---|
| audio_id | unique per song | id | id | audio_id, id, track_id, song_id |
| path | audio file, relative to the audio folder | path | path | path, audio, file, filename |
| streams | times played | play_count | plays | streams, play_count, plays |
| likes | likes or upvotes | upvote_count | likes | likes, upvote_count, like_count |
| released | date or time of release | created_at | published_at, created_at | released, ... |

A file without a path column names its audio `<audio_id>.mp3`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.dates import read_dates
from apex_reward.files.tables import read_table

if TYPE_CHECKING:
    import pyarrow as pa

FIELDS = ("audio_id", "path", "platform", "streams", "likes", "released")
REQUIRED = ("audio_id", "streams", "likes")
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


@dataclass(frozen=True)
class Song:
    """One row of metadata. `streams` and `likes` are None where they are not counts.

    `undated` says what is wrong with a date that is given and not used (`released` is None then).
    """

    audio_id: str
    path: str
    platform: str
    streams: float | None
    likes: float | None
    released: datetime | None
    undated: str = ""


def read_metadata(
    path: Path, preset: str = "auto", columns: Mapping[str, str] | None = None
) -> list[Song]:
    """The songs of one metadata file, in its order.

    Args:
        path: `.csv`, `.jsonl` or `.parquet`.
        preset: `suno`, `udio`, `plain`, or `auto`: the first preset with all needed columns.
        columns: columns by field, over the preset's.

    Raises:
        UsageError: an unknown preset or field.
        DataError: needed columns are missing.
    """
    table = read_table(
        path, text=[columns["audio_id"]] if columns and "audio_id" in columns else ()
    )
    name, chosen = choose_columns(path, table.column_names, preset, columns or {})
    platform = name if name in ("suno", "udio") else path.stem
    values = {field: _values(table, chosen.get(field)) for field in FIELDS}
    dates = read_dates(values["released"])
    undated = {position: f"cannot be read: {cell}" for position, cell in dates.unread.items()}
    undated |= {position: f"in the future: {cell}" for position, cell in dates.future.items()}
    values["released"] = dates.moments
    rows = zip(*(values[field] for field in FIELDS), strict=True)
    return [
        Song(
            audio_id=_text(audio_id),
            path=_text(file) or f"{_text(audio_id)}.mp3",
            platform=_text(where) or platform,
            streams=count_of(streams),
            likes=count_of(likes),
            released=released,
            undated=undated.get(position, ""),
        )
        for position, (audio_id, file, where, streams, likes, released) in enumerate(rows)
    ]


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


def _values(table: pa.Table, column: str | None) -> list[Any]:
    return [None] * len(table) if column is None else table[column].to_pylist()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def count_of(value: Any) -> float | None:
    """A count as a number; None for what is missing, negative or no number.

    Commas part thousands (or, before K, M or B, a decimal: `1,2M`); K, M and B multiply.

    >>> count_of("1,204"), count_of("381K"), count_of("1.2M"), count_of(-1), count_of("many")
    (1204.0, 381000.0, 1200000.0, None, None)
    """
    factor = 1.0
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
