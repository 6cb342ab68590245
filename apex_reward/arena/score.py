"""Score both songs of every battle with a `Reward`, and continue a killed run.

Songs are scored one by one into `STEM.songs.jsonl` beside the output (a song of several battles
once), and with rulers into `STEM.rulers.jsonl`. The battle table is made of them at the end, with
`NAME_a`, `NAME_b` for each score, `rulers.NAME_a`, `rulers.NAME_b` for each ruler, and `error_a`,
`error_b` with the reason where a song has no score. A column of the battles with one of these names
is kept as `input.<column>`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from apex_reward.arena.battles import RULERS, Row, audio_name, uuid_of
from apex_reward.audio.load import songs_by_stem
from apex_reward.errors import DataError
from apex_reward.files.tables import check_format, read_jsonl, write_table
from apex_reward.prompt import Prompt, prompt_of
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import failures, row_columns
from apex_reward.scoring import Engine, ScoreSettings, score_to_file
from apex_reward.scoring.rows import kept_names

NOT_NAMED = "no audio is named for this side"
Pair = tuple[str | None, str | None]


def song_paths(rows: Sequence[Row], audio_folder: Path) -> list[Pair]:
    """The two song paths of every battle, None where a side names none.

    A side's path is the column `audio_a` / `audio_b` (a path, or the hub's mapping with one),
    relative to `audio_folder`; without the column it is the one file `<battle_uuid>_a.*`.

    Raises:
        DataError: `audio_folder` is no folder, or no battle names any song.
    """
    if not audio_folder.is_dir():
        raise DataError(f"{audio_folder} is not a folder; --audio-dir holds the battles' songs")
    by_stem = songs_by_stem(audio_folder)

    def path_of(row: Row, side: str) -> str | None:
        if name := audio_name(row, side):
            return str(audio_folder / name)
        found = by_stem.get(f"{uuid_of(row)}_{side}")
        return None if found is None else str(found)

    pairs = [(path_of(row, "a"), path_of(row, "b")) for row in rows]
    if all(a is None and b is None for a, b in pairs):
        raise DataError(
            "no battle names a song: expected columns audio_a and audio_b with paths below "
            f"{audio_folder}, or files <battle_uuid>_a.* and <battle_uuid>_b.* in it"
        )
    return pairs


def songs_table(output: Path, name: str = "songs") -> Path:
    """The file in which the songs' rows grow, beside the battles."""
    return output.with_name(f"{output.stem}.{name}.jsonl")


def score_battles(
    rows: Sequence[Row],
    paths: Sequence[Pair],
    output: Path,
    reward: Reward,
    *,
    rulers: Reward | None = None,
    rewarded: bool = False,
    workers: int = 0,
    engine: Engine = Engine(),  # noqa: B008
    resume: bool = False,
    on_song: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> tuple[int, list[str]]:
    """Write the battles with their scores to `output`; the same bytes after any resume.

    Args:
        rows: battles, with any columns. `prompt` and `lyrics` go to models that read them.
        paths: as `song_paths` returns them.
        output: `.csv`, `.jsonl` or `.parquet`.
        reward: judges the songs; of a cascade the teacher judges all.
        rulers: the model of plain measures, as a reward; None: no rulers.
        rewarded: add `reward_raw` and `reward` of both sides.
        workers: decoding processes, of each process that works.
        engine: what scores the songs; the first process writes the battles.
        resume: keep the songs that a killed run scored.
        on_song: called with every song's row.

    Returns:
        How many songs were scored, and a line for each that failed.
    """
    check_format(output)
    judges = [("songs", "", reward.teacher, rewarded)]
    judges += [("rulers", RULERS, rulers, False)] if rulers is not None else []
    written = {
        file: [name for name in row_columns(judge, mixed) if not name.endswith("_std")]
        for file, _, judge, mixed in judges
    }
    taken = {f"error_{side}" for side in "ab"} | {
        f"{prefix}{name}_{side}" for file, prefix, *_ in judges for name in written[file]
        for side in "ab"
    }  # fmt: skip
    kept = kept_names(dict.fromkeys(name for row in rows for name in row), taken)
    result = [{kept[name]: cell for name, cell in row.items()} for row in rows]
    failed: list[str] = []
    counted = 0
    for file, prefix, judge, mixed in judges:
        reads = judge.model.reads_text
        texts = [prompt_of(row.get("prompt"), row.get("lyrics")) for row in rows if reads]
        sides = [
            [None if path is None else (path, text, text.lyrics) for path in two]
            for two, text in zip(paths, texts or repeat(Prompt()), strict=False)
        ]
        songs = list(dict.fromkeys(song for two in sides for song in two if song is not None))
        counted = counted or len(songs)
        score_to_file(
            judge,
            [path for path, _, _ in songs],
            songs_table(output, file),
            ScoreSettings(mixed),
            prompts=[prompt_of(*text) for _, *text in songs] if reads else None,
            workers=workers,
            engine=engine,
            resume=resume,
            on_row=lambda row, fresh: on_song(row),
        )
        if engine.share.first:
            scored = read_jsonl(songs_table(output, file))
            failed += [line for line in failures(scored) if line not in failed]
            cells = dict(zip(songs, scored, strict=True))
            for row, two in zip(result, sides, strict=True):
                found = [{"error": NOT_NAMED} if song is None else cells[song] for song in two]
                _add(row, found, written[file], prefix)
    if engine.share.first:
        write_table(output, result)
        if unnamed := sum(path is None for two in paths for path in two):
            failed.append(f"{unnamed} sides of battles: {NOT_NAMED}")
    return counted, failed


def _add(
    row: dict[str, Any], songs: Sequence[Mapping[str, Any]], names: Sequence[str], prefix: str
) -> None:
    """Add the scores of both sides, and the errors, to a battle."""
    for name in names:
        for side, cells in zip("ab", songs, strict=True):
            row[f"{prefix}{name}_{side}"] = cells.get(name)
    for side, cells in zip("ab", songs, strict=True):
        # Where rulers are well the error of the other models stays.
        if cells["error"] or not prefix:
            row[f"error_{side}"] = cells["error"]
