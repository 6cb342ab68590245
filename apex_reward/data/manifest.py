"""Read a manifest: the songs to extract, with their labels and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apex_reward.data.extract import ManifestSong
from apex_reward.data.shards import SPLITS
from apex_reward.data.teacher import TeacherScores
from apex_reward.errors import DataError, listed
from apex_reward.files.tables import read_table
from apex_reward.scores.apex import AESTHETIC_HEADS, POPULARITY_HEADS

REQUIRED = ("audio_id", "path")


def read_manifest(path: Path, teacher: TeacherScores | None = None) -> list[ManifestSong]:
    """The songs of a manifest, in its order.

    Args:
        path: `.parquet`, `.csv` or `.jsonl` with `audio_id` and `path`; `split` (without it every
            song goes to train), `platform`, the popularity heads, the aesthetic heads.
        teacher: aesthetic labels by `audio_id`, over the manifest's.

    Raises:
        DataError: every problem found, together.
    """
    table = read_table(path)
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {listed(missing)}; it has {table.column_names}")
    labels = [
        name
        for name in ("platform", *POPULARITY_HEADS, *AESTHETIC_HEADS)
        if name in table.column_names
    ]
    songs = []
    for row in table.to_pylist():
        values = {name: row[name] for name in labels if row[name] is not None}
        values |= (teacher or {}).get(str(row["audio_id"]), {})
        split = row.get("split") or "train"
        songs.append(ManifestSong(_text(row["audio_id"]), _text(row["path"]), split, values))
    problems = _problems(songs, teacher)
    if problems:
        raise DataError.listing(f"the manifest {path} cannot be used", problems)
    return songs


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _problems(songs: list[ManifestSong], teacher: TeacherScores | None) -> list[str]:
    problems = []
    if not songs:
        problems.append("it has no rows")
    nameless = sum(not song.audio_id or not song.path for song in songs)
    if nameless:
        problems.append(f"{nameless} rows lack audio_id or path")
    ids = [song.audio_id for song in songs if song.audio_id]
    if len(set(ids)) < len(ids):
        repeated = {name: None for name in ids if ids.count(name) > 1} if len(ids) < 10_000 else []
        problems.append(f"{len(ids) - len(set(ids))} audio_ids repeat: {listed(repeated, 4)}")
    splits = sorted({song.split for song in songs} - set(SPLITS))
    if splits:
        problems.append(f"splits {listed(splits)}; expected {', '.join(SPLITS)}")
    if teacher is not None:
        absent = [name for name in dict.fromkeys(ids) if name not in teacher]
        if absent:
            problems.append(f"no teacher scores for {listed(absent, 4)}")
    return problems
