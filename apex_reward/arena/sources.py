"""Where battles come from: a table, a Music Arena folder, or the data set's hub id.

Music Arena publishes one JSON file per vote under `battle_data/<batch>/` and the songs under
`audio_files/<batch>/`; a vote holds `battle_uuid, date, prompt, is_instrumental, is_prebaked,
user_pseudonym, audio_a, system_a, audio_b, system_b, preference, total_listening_time_a,
total_listening_time_b` and more. Audio paths are relative to the folder and empty for systems
whose audio was not released. Source: https://github.com/gclef-cmu/music-arena
(`components/leaderboard`), hub data set `music-arena/music-arena-dataset`, CC BY 4.0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apex_reward.arena.battles import audio_name
from apex_reward.arena.cells import VOTES, truth, vote_of
from apex_reward.errors import DataError, UsageError
from apex_reward.files.dates import read_months
from apex_reward.files.tables import read_jsonl, read_table

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class BattleFilter:
    """Which battles to keep; every one left out is counted under its reason.

    Attributes:
        last_months: only the newest battle's calendar month and the ones before it, this many in
            all (`outside_dates`; a battle without a date too; `unreadable_date` one whose date
            cannot be read or lies in the future).
        binary: only votes for A or B (`TIE`, `BOTH_BAD`).
        audio: only battles whose two songs are there (`no_audio`).
        min_listening: only battles where each song was heard for this many seconds
            (`short_listening`).
        prebaked: whether battles on the Arena's own prompts are kept (`prebaked`).
    """

    last_months: int | None = None
    binary: bool = False
    audio: bool = False
    min_listening: float | None = None
    prebaked: bool = True

    def __post_init__(self) -> None:
        if self.last_months is not None and self.last_months < 1:
            raise UsageError(f"last_months is {self.last_months}; expected at least 1")


def read_rows(source: str | Path, *, audio: bool = False) -> tuple[list[Row], Path, dict[str, int]]:
    """Battle rows, the folder that their audio paths start from, and counts of unreadable files.

    Args:
        source: a `.csv`, `.jsonl` or `.parquet` table, a Music Arena folder, or a hub id
            `owner/name`, which downloads the votes (and with `audio` the songs too).

    Raises:
        DataError: nothing there, or nothing of the expected layout in it.
    """
    path = Path(source)
    if path.is_dir():
        rows, unreadable = _music_arena_rows(path)
        return rows, path, {"unreadable": unreadable} if unreadable else {}
    if path.suffix.lower() not in (".csv", ".jsonl", ".parquet") and not path.exists():
        if not _HUB_ID.fullmatch(str(source)):
            raise DataError(f"{source} does not exist; expected a table, a folder or a hub id")
        return read_rows(_download(str(source), audio), audio=audio)
    # Rows of JSON lines as they are: a table would make one kind of every column first.
    read: list[Row] = []
    read += read_jsonl(path) if path.suffix.lower() == ".jsonl" else read_table(path).to_pylist()
    return read, path.parent, {}


def filter_rows(
    rows: Sequence[Row], keep: BattleFilter, audio_folder: Path
) -> tuple[list[Row], dict[str, int]]:
    """Rows that pass, and how many were left out for each reason (each row for its first one)."""
    months, dates = read_months(row.get("date") for row in rows)
    first_month = _first_month(months, keep.last_months)
    unused = dates.unread.keys() | dates.future.keys()
    kept: list[Row] = []
    counts: Counter[str] = Counter()
    for position, row in enumerate(rows):
        reason = _reason(row, keep, audio_folder)
        if months[position] < first_month and reason != "unknown_vote":
            reason = "unreadable_date" if position in unused else "outside_dates"
        if reason is None:
            kept.append(row)
        else:
            counts[reason] += 1
    return kept, dict(counts)


def _reason(row: Row, keep: BattleFilter, audio_folder: Path) -> str | None:
    vote = vote_of(row.get("preference"))
    if vote == "":
        return "unknown_vote"
    if not keep.prebaked and truth(row.get("is_prebaked")) == 1:
        return "prebaked"
    if keep.binary and vote in VOTES[2:]:
        return vote
    if keep.min_listening is not None and any(
        (row.get(f"total_listening_time_{side}") or 0.0) < keep.min_listening for side in "ab"
    ):
        return "short_listening"
    if keep.audio and any(audio_path(row, side, audio_folder) is None for side in "ab"):
        return "no_audio"
    return None


def audio_path(row: Row, side: str, folder: Path) -> Path | None:
    """Where the song of side `a` or `b` lies, or None where it is not named or not there."""
    name = audio_name(row, side)
    path = folder / name
    return path if name and path.is_file() else None


def _first_month(months: Sequence[str], last_months: int | None) -> str:
    if last_months is None:
        return ""
    newest = max(months, default="")
    if not newest:
        raise DataError(f"no battle has a date, so the last {last_months} months cannot be chosen")
    index = int(newest[:4]) * 12 + int(newest[5:]) - last_months
    return f"{index // 12:04d}-{index % 12 + 1:02d}"


def _music_arena_rows(folder: Path) -> tuple[list[Row], int]:
    files = sorted((folder / "battle_data").rglob("*.json"))
    if not files:
        raise DataError(f"{folder} holds no battle_data/**.json; expected a Music Arena clone")
    rows: list[Row] = []
    for file in files:
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows, len(files) - len(rows)


def _download(hub_id: str, audio: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["battle_data/**", *(["audio_files/**"] if audio else [])]
    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise DataError(
            f"{hub_id} is neither a file or folder here nor could it be fetched from the hub "
            f"({type(error).__name__}); check the name and the network"
        ) from error
