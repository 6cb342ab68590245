"""Score both songs of every battle with any reward model, and go on where a run was killed.

Songs are scored one by one into `STEM.songs.jsonl` beside the output (a song of several battles
once); the battle table is put together from it at the end, with `NAME_a`, `NAME_b` for each score
and `error_a`, `error_b` with the reason where a song gave none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.arena.battles import uuid_of
from apex_reward.arena.sources import Row
from apex_reward.errors import AudioError, DataError, UsageError
from apex_reward.files.tables import check_format, json_line, read_jsonl, write_table
from apex_reward.rewards.foreign.audiobox import RewardModel

if TYPE_CHECKING:
    from apex_reward.model import ApexReward

NOT_SCORES = ("path", "duration", "sample_rate", "segments", "flags", "error", "model")
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


def score_battles(
    rows: Sequence[Row],
    paths: Sequence[tuple[str | None, str | None]],
    output: Path,
    model: ApexReward | RewardModel,
    *,
    workers: int = 0,
    batch_segments: int | None = None,
    resume: bool = False,
    on_song: OnSong = lambda row: None,
) -> tuple[int, list[str]]:
    """Write the battles with their scores to `output`; the same bytes after any resume.

    Args:
        rows: battles, with any columns; they are all kept.
        paths: as `song_paths` gives them.
        output: `.csv`, `.jsonl` or `.parquet`.
        model: an `ApexReward`, or any `RewardModel`.
        workers, batch_segments: for an `ApexReward`, as in `scoring.run_songs`.
        resume: keep the songs that a killed run scored.
        on_song: called with every song's row.

    Returns:
        How many songs were scored, and a line for each that failed.
    """
    check_format(output)
    songs = list(dict.fromkeys(path for pair in paths for path in pair if path is not None))
    table = output.with_name(f"{output.stem}.songs.jsonl")
    _score_songs(songs, table, model, workers, batch_segments, resume, on_song)
    by_path = dict(zip(songs, read_jsonl(table), strict=True))
    columns = dict.fromkeys(name for scores in by_path.values() for name in scores)
    names = [name for name in columns if name not in NOT_SCORES]
    write_table(
        output, [_scored(row, pair, by_path, names) for row, pair in zip(rows, paths, strict=True)]
    )
    failures = [f"{path}: {row['error']}" for path, row in by_path.items() if row["error"]]
    unnamed = sum(path is None for pair in paths for path in pair)
    if unnamed:
        failures.append(f"{unnamed} sides of battles: {NOT_NAMED}")
    return len(songs), failures


def _score_songs(
    songs: list[str],
    table: Path,
    model: ApexReward | RewardModel,
    workers: int,
    batch_segments: int | None,
    resume: bool,
    on_song: OnSong,
) -> None:
    from apex_reward.model import ApexReward
    from apex_reward.scoring import ScoreSettings, score_to_file

    if isinstance(model, ApexReward):
        settings = ScoreSettings(batch_segments=batch_segments)
        score_to_file(
            model,
            songs,
            table,
            settings,
            workers=workers,
            resume=resume,
            on_row=lambda row, fresh: on_song(row),
        )
    else:
        _score_with(model, songs, table, resume, on_song)


def _score_with(
    model: RewardModel, songs: list[str], table: Path, resume: bool, on_song: OnSong
) -> None:
    """Songs one by one through any reward model, growing in `table.partial`."""
    partial = table.with_name(table.name + ".partial")
    written = table if table.exists() else partial
    former = read_jsonl(written) if resume and written.exists() else []
    if any(
        row["path"] != song or row["model"] != model.name
        for row, song in zip(former, songs, strict=False)
    ):
        raise UsageError(
            f"{written} was made with another model or other songs; leave out --resume"
        )
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "w", encoding="utf-8") as file:
        for row in former:
            file.write(json_line(row))
            on_song(row)
        for song in songs[len(former) :]:
            row = _song_row(model, song)
            file.write(json_line(row))
            file.flush()
            on_song(row)
    partial.replace(table)


def _song_row(model: RewardModel, song: str) -> dict[str, Any]:
    import torch

    from apex_reward.audio import load_audio

    row: dict[str, Any] = {"path": song, "model": model.name, "error": None}
    try:
        audio = load_audio(song)
        scores = model.score(torch.from_numpy(audio.samples)[None], audio.sample_rate)
    except AudioError as error:
        return {**row, "error": str(error)}
    for name, values in scores.items():
        row[name] = float(torch.as_tensor(values).reshape(-1)[0])
    return row


def _scored(
    row: Row,
    pair: tuple[str | None, str | None],
    by_path: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
) -> dict[str, Any]:
    result = dict(row)
    sides = {side: by_path.get(path or "", {}) for side, path in zip("ab", pair, strict=True)}
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
