"""Score both songs of every battle with a `Reward`, and go on where a run was killed.

Songs are scored one by one into `STEM.songs.jsonl` beside the output (a song of several battles
once); the battle table is put together from it at the end, with `NAME_a`, `NAME_b` for each score
and `error_a`, `error_b` with the reason where a song gave none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.arena.battles import uuid_of
from apex_reward.arena.sources import Row
from apex_reward.errors import DataError
from apex_reward.files.tables import check_format, read_jsonl, write_table
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import failures, row_columns
from apex_reward.scoring import Engine, ScoreSettings, score_to_file

NOT_NAMED = "no audio is named for this side"
OnSong = Callable[[Mapping[str, Any]], None]


def song_paths(rows: Sequence[Row], audio_folder: Path) -> list[tuple[str | None, str | None]]:
    """The two song paths of every battle, None where a side names none.

    A side's path is the column `audio_a` / `audio_b` (a path, or the hub's mapping with one),
    relative to `audio_folder`; without the column it is the one file `<battle_uuid>_a.*`.

    Raises:
        DataError: `audio_folder` is no folder, or no battle names any song.
    """
    if not audio_folder.is_dir():
        raise DataError(f"{audio_folder} is not a folder; --audio-dir holds the battles' songs")
    by_stem = {path.stem: path for path in sorted(audio_folder.glob("*_[ab].*"))}
    found = [
        (_song_path(row, "a", audio_folder, by_stem), _song_path(row, "b", audio_folder, by_stem))
        for row in rows
    ]
    if all(a is None and b is None for a, b in found):
        raise DataError(
            "no battle names a song: expected columns audio_a and audio_b with paths below "
            f"{audio_folder}, or files <battle_uuid>_a.* and <battle_uuid>_b.* in it"
        )
    return found


def songs_table(output: Path) -> Path:
    """The file that the songs' rows grow in, beside the battles."""
    return output.with_name(f"{output.stem}.songs.jsonl")


def score_battles(
    rows: Sequence[Row],
    paths: Sequence[tuple[str | None, str | None]],
    output: Path,
    reward: Reward,
    *,
    rewarded: bool = False,
    workers: int = 0,
    engine: Engine = Engine(),  # noqa: B008
    resume: bool = False,
    on_song: OnSong = lambda row: None,
) -> tuple[int, list[str]]:
    """Write the battles with their scores to `output`; the same bytes after any resume.

    Args:
        rows: battles, with any columns; they are all kept. `prompt` goes to models that read it.
        paths: as `song_paths` gives them.
        output: `.csv`, `.jsonl` or `.parquet`.
        reward: judges the songs.
        rewarded: add `reward_raw` and `reward` of both sides.
        workers: decoding processes, of each process that works.
        engine: who scores the songs; the first process writes the battles.
        resume: keep the songs that a killed run scored.
        on_song: called with every song's row.

    Returns:
        How many songs were scored, and a line for each that failed.
    """
    check_format(output)
    reads = reward.model.reads_text
    sides = [
        [(path, str(row.get("prompt") or "") if reads else "") for path in pair]
        for row, pair in zip(rows, paths, strict=True)
    ]
    songs = list(dict.fromkeys(song for pair in sides for song in pair if song[0] is not None))
    table = songs_table(output)
    score_to_file(
        reward,
        [str(path) for path, _ in songs],
        table,
        ScoreSettings(rewarded),
        prompts=[prompt for _, prompt in songs] if reads else None,
        workers=workers,
        engine=engine,
        resume=resume,
        on_row=lambda row, fresh: on_song(row),
    )
    if not engine.share.first:
        return len(songs), []
    by_song = dict(zip(songs, read_jsonl(table), strict=True))
    names = [name for name in row_columns(reward, rewarded) if not name.endswith("_std")]
    write_table(
        output, [_scored(row, pair, by_song, names) for row, pair in zip(rows, sides, strict=True)]
    )
    failed = failures(list(by_song.values()))
    unnamed = sum(path is None for pair in paths for path in pair)
    if unnamed:
        failed.append(f"{unnamed} sides of battles: {NOT_NAMED}")
    return len(songs), failed


def _scored(
    row: Row,
    pair: Sequence[tuple[str | None, str]],
    by_song: Mapping[tuple[str | None, str], Mapping[str, Any]],
    names: Sequence[str],
) -> dict[str, Any]:
    result = dict(row)
    sides = {side: by_song.get(song, {}) for side, song in zip("ab", pair, strict=True)}
    for name in names:
        for side, scores in sides.items():
            result[f"{name}_{side}"] = scores.get(name)
    for side, scores in sides.items():
        result[f"error_{side}"] = scores.get("error") if scores else NOT_NAMED
    return result


def _song_path(row: Row, side: str, folder: Path, by_stem: Mapping[str, Path]) -> str | None:
    value = row.get(f"audio_{side}")
    if isinstance(value, Mapping):
        value = value.get("path")
    if value:
        return str(folder / str(value))
    found = by_stem.get(f"{uuid_of(row)}_{side}")
    return None if found is None else str(found)
