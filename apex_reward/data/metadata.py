"""Platform metadata under one set of names: column presets and explicit columns.

| field | meaning | Suno | Udio | plain |
|---|---|---|---|---|
| audio_id | unique per song | id, audio_id | id, audio_id | id, audio_id |
| path | audio file, relative to the audio folder | path | path | path |
| platform | where the song is from | platform, else `suno` | platform, else `udio` | platform |
| streams | times played | play_count | plays | streams |
| likes | likes or upvotes | upvote_count | likes | likes |
| released | date or time of release | created_at | published_at | released |

A table without a path column names its audio `<audio_id>.mp3`. Songs are rows of a data frame: a
million of them are read in the time that their file takes.

Shape key: N = songs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from apex_reward.errors import DataError, listed
from apex_reward.files.dates import read_dates
from apex_reward.files.tables import read_table, with_numbers

FIELDS = ("audio_id", "path", "platform", "streams", "likes", "released")
REQUIRED = ("audio_id", "streams", "likes")
PLATFORMS = ("suno", "udio")
PRESETS: dict[str, dict[str, str]] = {
    "suno": {"streams": "play_count", "likes": "upvote_count", "released": "created_at"},
    "udio": {"streams": "plays", "likes": "likes", "released": "published_at"},
    "plain": {"streams": "streams", "likes": "likes", "released": "released"},
}


def read_metadata(
    path: Path, preset: str = "auto", columns: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The songs of one table of metadata, in its order.

    Args:
        path: `.csv`, `.jsonl` or `.parquet`.
        preset: `suno`, `udio`, `plain`, or `auto`: the first preset with all needed columns.
        columns: columns by field, over the preset's.

    Returns:
        N rows with `audio_id`, `path`, `platform` (texts; empty where there is none), `streams`,
        `likes` (NaN where a cell is missing, negative or unreadable), `released` (UTC without a
        zone, NaT where there is no date that can be used), `unreadable` (the column of an
        unreadable count) and `undated` (what is wrong with a date that is not used).

    Raises:
        DataError: needed columns are missing.
    """
    named = columns or {}
    table = read_table(path, text=[named["audio_id"]] if "audio_id" in named else ())
    name, chosen = choose_columns(path, table.column_names, preset, named)
    nothing = pa.chunked_array([pa.nulls(len(table))])
    cells = {field: table[chosen[field]] if field in chosen else nothing for field in FIELDS}
    songs = pd.DataFrame({field: _texts(cells[field]) for field in FIELDS[:3]}, dtype="str")
    songs["path"] = songs["path"].where(songs["path"] != "", songs["audio_id"] + ".mp3")
    own = name if name in PLATFORMS else ""
    songs["platform"] = songs["platform"].where(songs["platform"] != "", own)
    songs["unreadable"] = ""
    for field in ("likes", "streams"):  # streams last: its name stays where both are unreadable
        songs[field], bad = counts_of(cells[field])
        songs.loc[bad, "unreadable"] = chosen[field]
    songs["released"], songs["undated"] = np.datetime64("NaT", "us"), ""
    if not pa.types.is_null(cells["released"].type):
        dates = read_dates(cells["released"].to_pylist())
        songs["released"] = dates.times
        songs.loc[list(dates.unread), "undated"] = "cannot be read"
        songs.loc[list(dates.future), "undated"] = "in the future"
    return songs


def choose_columns(
    path: Path, present: Sequence[str], preset: str, columns: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """The preset that fits a table, and its column for every field that it has."""
    unknown = [column for column in columns.values() if column not in present]
    if unknown:
        raise DataError(f"{path} has no column {listed(unknown)}; it has {listed(present, 20)}")
    missing: list[str] = []
    for name in PRESETS if preset == "auto" else (preset,):
        own = {"audio_id": "id" if "id" in present else "audio_id", "path": "path",
               "platform": "platform", **PRESETS[name]}  # fmt: skip
        found = {field: column for field, column in own.items() if column in present}
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


def _texts(column: pa.ChunkedArray) -> Any:
    """Cells as text, empty where there is none."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return column.cast(pa.string()).fill_null("").to_pandas()
    return ["" if cell is None else str(cell) for cell in column.to_pylist()]


def counts_of(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(N,) counts of a column, NaN where there is none, and (N,) which cells are unreadable.

    A cell is unreadable that is neither missing nor a number: other text, true and false, lists.
    """
    table, unreadable = with_numbers(pa.table({"count": column}), ["count"])
    counts = table["count"].cast(pa.float64()).to_numpy().astype(np.float64)
    bad = np.zeros(len(counts), bool)
    for row in unreadable.get("count", ()):
        count = count_of(column[row].as_py())
        counts[row], bad[row] = (math.nan, True) if count is None else (count, False)
    return np.where(counts < 0, math.nan, counts), bad


def count_of(value: Any) -> float | None:
    """A count as a number; None for what is missing, negative or no number.

    Commas part thousands; K, M and B multiply.

    >>> count_of("1,204"), count_of("381K"), count_of("1.2M"), count_of(-1), count_of("many")
    (1204.0, 381000.0, 1200000.0, None, None)
    """
    found = _COUNT.fullmatch(str(value).strip())
    if found is None:
        return None
    # Rounded: 1.2 million is 1200000 whatever the product of the floats says.
    return round(float(found[1].replace(",", "")) * _FACTORS[(found[2] or "").upper()], 6)


_COUNT = re.compile(r"((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?)\s*([KMB]?)", re.IGNORECASE)
_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
