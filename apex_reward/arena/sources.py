"""Where battles come from: a table, a Music Arena folder, or the data set's hub id.

Music Arena publishes one JSON file per vote under `battle_data/<batch>/` and the songs under
`audio_files/<batch>/`; a vote holds `battle_uuid, date, prompt, is_instrumental, is_prebaked,
user_pseudonym, audio_a, system_a, audio_b, system_b, preference, total_listening_time_a,
total_listening_time_b` and more. Audio paths are relative to the folder and empty for systems
whose audio was not released. Source: https://github.com/gclef-cmu/music-arena
(`components/leaderboard`), hub data set `music-arena/music-arena-dataset`, CC BY 4.0.

Shape key: N = battles, W = embedding width.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import apex_reward
from apex_reward.arena import BattleFilter
from apex_reward.arena import battles as b
from apex_reward.arena.battles import Battles, Row, audio_name, truth, uuid_of
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files import tables as files
from apex_reward.files.dates import read_months
from apex_reward.files.stamps import provenance_path
from apex_reward.metrics import FloatArray

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NAMED = re.compile(r"([\w.-]+)=(.+)")


def load_battles(
    source: str | Path,
    *,
    scores: Sequence[str] | None = None,
    by: Sequence[str] = (),
    keep: BattleFilter | None = None,
    tables: Sequence[str | Path] = (),
) -> Battles:
    """`battles_of` the rows of `load_rows`."""
    rows, dropped = load_rows(source, keep=keep, tables=tables)
    return b.battles_of(rows, scores=scores, by=by, dropped=dropped)


def load_rows(
    source: str | Path, *, keep: BattleFilter | None = None, tables: Sequence[str | Path] = ()
) -> tuple[list[Row], dict[str, int]]:
    """Battle rows that pass the filter, and how many others there are for each reason.

    Args:
        source: as in `read_rows`.
        keep: the filter; None keeps every battle.
        tables: score tables of other models, as `FILE` or `NAME=FILE`. With a NAME the columns
            `x_a` and `x_b` become `NAME.x_a` and `NAME.x_b`. Rows join by `battle_uuid`.

    Raises:
        UsageError: two tables have numbers in the same columns.
    """
    keep = keep or BattleFilter()
    rows, folder, dropped = read_rows(source, audio=keep.audio)
    for table in tables:
        rows = _joined(rows, *named_table(table))
    kept, reasons = filter_rows(rows, keep, folder)
    return kept, {**dropped, **reasons}


def read_rows(source: str | Path, *, audio: bool = False) -> tuple[list[Row], Path, dict[str, int]]:
    """Battle rows, the folder that their audio paths start from, and counts of unreadable files.

    Args:
        source: a `.csv`, `.jsonl` or `.parquet` table, a Music Arena folder, or a hub id
            `owner/name`, which downloads the votes (and with `audio` the songs too).

    Raises:
        DataError: nothing there, or nothing of the expected layout in it.
    """
    path = Path(source)
    if path.suffix.lower() not in files.FORMATS and not path.exists():
        if not _HUB_ID.fullmatch(str(source)):
            raise DataError(f"{source} does not exist; expected a table, a folder or a hub id")
        path = _download(str(source), audio)
    if not path.is_dir():
        return [*files.read_rows(path)], path.parent, {}
    votes = sorted((path / "battle_data").rglob("*.json"))
    if not votes:
        raise DataError(f"{path} holds no battle_data/**.json; expected a Music Arena clone")
    rows: list[Row] = []
    for file in votes:
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    rows = [row for row in rows if isinstance(row, dict)]
    unreadable = len(votes) - len(rows)
    return rows, path, {"unreadable": unreadable} if unreadable else {}


def _download(hub_id: str, audio: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["battle_data/**", *(["audio_files/**"] if audio else [])]
    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise DataError(
            f"{hub_id} is no file or folder here, and the hub does not provide it "
            f"({type(error).__name__}); check the name and the network"
        ) from error


def filter_rows(
    rows: Sequence[Row], keep: BattleFilter, audio_folder: Path
) -> tuple[list[Row], dict[str, int]]:
    """Rows that pass, and how many others there are for each reason (the first one that holds).

    A reason is an unknown vote, or an option of the filter: `outside_dates` (also a battle without
    a date), `unreadable_date` (or one in the future), `TIE`, `BOTH_BAD`, `no_audio`,
    `short_listening`, `prebaked`.
    """
    if not rows:
        return [], {}
    votes = np.array([b.vote_of(row.get("preference")) for row in rows])
    reasons: dict[str, Any] = {"unknown_vote": votes == ""}
    if keep.last_months is not None:
        months, dates = read_months(row.get("date") for row in rows)
        if not any(months):
            raise DataError(
                f"no battle has a date, so the last {keep.last_months} months cannot be chosen"
            )
        before = np.array(months) < str(pd.Period(max(months), "M") - keep.last_months + 1)
        unused = np.isin(np.arange(len(rows)), [*dates.unread, *dates.future])
        reasons |= {"unreadable_date": before & unused, "outside_dates": before}
    if not keep.prebaked:
        reasons["prebaked"] = np.array([truth(row.get("is_prebaked")) == 1 for row in rows])
    if keep.binary:
        reasons |= {vote: votes == vote for vote in b.VOTES[2:]}
    if keep.min_listening is not None:
        columns = [f"total_listening_time_{side}" for side in "ab"]
        seconds = np.array([*b.numbers_of(rows, columns).values()])
        heard = (seconds >= keep.min_listening) & np.isfinite(seconds)
        reasons["short_listening"] = ~heard.all(axis=0)
    if keep.audio:
        found = [[audio_path(row, side, audio_folder) for side in "ab"] for row in rows]
        reasons["no_audio"] = np.array([None in two for two in found])
    reason = np.select([*reasons.values()], [*reasons], default="")
    kept = [row for row, why in zip(rows, reason, strict=True) if not why]
    return kept, {name: int((reason == name).sum()) for name in reasons if name in reason}


def audio_path(row: Row, side: str, folder: Path) -> Path | None:
    """Path of the song of side `a` or `b`, or None where it is not named or does not exist."""
    name = audio_name(row, side)
    return folder / name if name and (folder / name).is_file() else None


def named_table(table: str | Path) -> tuple[Path, str]:
    """The file of `FILE` or `NAME=FILE`, and the name or empty text."""
    named = _NAMED.fullmatch(str(table))
    if named is None or Path(table).exists():
        return Path(table), ""
    return Path(named[2]), named[1]


def _joined(rows: Sequence[Row], table: Path, name: str) -> list[Row]:
    extra = {uuid: row for row in files.read_rows(table) if (uuid := uuid_of(row))}
    joined = [extra.get(uuid_of(row), {}) for row in rows]
    if not any(joined):
        raise DataError(f"no battle_uuid of {table} is one of the battles'")
    if name:
        joined = [{f"{name}.{key}": row[key] for key in row if _is_score(key)} for row in joined]
    both = sorted(_filled(rows) & _filled(joined))
    if both:
        raise UsageError(
            f"{table} has numbers in columns that the battles or another table already have: "
            f"{listed(both)}. Add a name that goes before them: --table NAME={table}"
        )
    # The battle's own cells win, unless they are empty.
    return [
        {**more, **{key: cell for key, cell in row.items() if cell is not None or key not in more}}
        for more, row in zip(joined, rows, strict=True)
    ]


def _is_score(column: str) -> bool:
    """Whether a column `NAME_a` or `NAME_b` may be a score's."""
    return column.endswith(("_a", "_b")) and column[:-2] not in b.NOT_SCORES


def _filled(rows: Sequence[Row]) -> set[str]:
    """Columns of scores that hold a number in any row."""
    columns = sorted({column for row in rows for column in row if _is_score(column)})
    numbers = b.numbers_of(rows, columns)
    return {column for column, found in numbers.items() if np.isfinite(found).any()}


def provenance(source: str | Path, tables: Sequence[str | Path] = ()) -> dict[str, Any]:
    """What `metrics.json` states about its making: package version, and what made the scores.

    `made_by` holds, per table, what `arena score` left beside it (model, mix and settings).
    """
    made_by = {}
    for table in (Path(source), *(named_table(table)[0] for table in tables)):
        songs = table.with_name(f"{table.stem}.songs.jsonl")
        for made in (provenance_path(table), provenance_path(songs)):
            if table.suffix and made.is_file():
                made_by[table.name] = files.read_json(made)
                break
    version = apex_reward.__version__
    return {"apex_reward": version, "battles": Path(source).name, "made_by": made_by}


def load_embeddings(path: Path, battles: Battles) -> FloatArray:
    """(N, 2, W) song embeddings of both sides: NaN where absent, infinite where unreadable.

    Args:
        path: a table with a row per song: `battle_uuid`, `side` (`a` or `b`), and `vector`, a
            list of W numbers (joined by `;` in CSV).
        battles: they need their `battle_uuid`.

    Raises:
        DataError: a column is absent, vectors differ in width, or no row belongs to a battle.
    """
    rows = files.read_rows(path)
    columns = set().union(*rows)
    if absent := [name for name in ("battle_uuid", "side", "vector") if name not in columns]:
        raise DataError(f"{path} lacks the columns {', '.join(absent)}")
    vectors = {
        (uuid_of(row), str(row.get("side")).strip().lower()): _vector(row["vector"])
        for row in rows
        if row.get("vector") not in (None, "")
    }
    widths = sorted({len(vector) for vector in vectors.values() if vector is not None})
    if len(widths) != 1:
        raise DataError(f"vectors in {path} differ in width: {listed(widths)}")
    result = np.full((len(battles), 2, widths[0]), np.nan)
    places = {uuid: place for place, uuid in enumerate(battles.uuid.tolist())}
    for (uuid, side), vector in vectors.items():
        if uuid in places and side in ("a", "b"):
            result[places[uuid], "ab".index(side)] = np.inf if vector is None else vector
    if not np.isfinite(result).any():
        raise DataError(f"no row of {path} has the battle_uuid of a battle and side a or b")
    return result


def _vector(cell: Any) -> FloatArray | None:
    """The numbers of a cell; None where it is no list of numbers."""
    numbers = cell.split(";") if isinstance(cell, str) else cell
    try:
        vector = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return vector if vector.ndim == 1 and np.isfinite(vector).all() else None
