"""Audio to shards: a manifest cut into fixed shards, each extracted by one pure function.

A shard is a block of `apex_reward.scoring.engines`: done by this process, one process per GPU
(`accelerate launch`), or a Ray actor on another machine. It is written whole, so that a killed
run goes on with the shards it lacks and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apex_reward.data.shards import (
    SPLITS,
    EmbeddingSource,
    SongRows,
    load_encoder,
    write_shard,
)
from apex_reward.data.teacher import Teacher, TeacherScores, call_teacher, load_teacher
from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.atomic import writing
from apex_reward.files.stamps import Stamp, text_hash
from apex_reward.files.tables import read_jsonl, read_table, with_numbers, write_table
from apex_reward.model.apex import ApexReward
from apex_reward.rewards.encode import encode_files
from apex_reward.rewards.engine import BLOCK_SONGS, SongResult
from apex_reward.rewards.load import usable_device
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS
from apex_reward.scoring.engines import Engine, Worker

# A multiple of the scoring engine's block, so that a shard's batches are its own.
SHARD_SONGS = 64
WORK = ".extract"


@dataclass(frozen=True)
class ManifestSong:
    """A song to extract: where its audio is, and the labels that go with it.

    Attributes:
        error: why its row of the manifest cannot be used; empty where it can.
    """

    audio_id: str
    path: str
    split: str
    labels: dict[str, Any]
    error: str = ""

    def failure(self, error: str) -> dict[str, str]:
        """As a row of `failed.jsonl`."""
        return {"audio_id": self.audio_id, "path": self.path, "split": self.split, "error": error}


def read_manifest(path: Path, teacher: TeacherScores | None = None) -> list[ManifestSong]:
    """The songs of a manifest, in its order. A row that cannot be used has an `error`.

    Args:
        path: `.parquet`, `.csv` or `.jsonl` with `audio_id` and `path`; `split` (without it every
            song goes to train), `platform`, the popularity heads, the aesthetic heads.
        teacher: aesthetic labels by `audio_id`, over the manifest's.

    Raises:
        DataError: no rows, or no columns `audio_id` and `path`.
    """
    table = read_table(path)
    missing = [name for name in ("audio_id", "path") if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {listed(missing)}; it has {table.column_names}")
    if len(table) == 0:
        raise DataError(f"the manifest {path} has no rows")
    heads = [head for head in HEADS if head in table.column_names]
    table, unreadable = with_numbers(table, heads)
    bad = {row: f"unreadable: {head}" for head, rows in unreadable.items() for row in rows}
    songs, seen = [], set[str]()
    for number, row in enumerate(table.to_pylist()):
        name, file = (str(row[key] if row[key] is not None else "") for key in ("audio_id", "path"))
        labels = {key: row[key] for key in ("platform", *heads) if row.get(key) is not None}
        split, error = row.get("split") or "train", bad.get(number, "")
        if not name or not file:
            error = "the row lacks audio_id or path"
        elif name in seen:
            error = "an earlier row has the same audio_id"
        elif split not in SPLITS:
            error = f"the split is {split}; expected {', '.join(SPLITS)}"
        elif teacher is not None:
            scores = teacher.get(name, {"error": "the table has no row for it"})
            labels |= scores
            error = f"no teacher scores: {scores['error']}" if "error" in scores else error
        seen.add(name)
        songs.append(ManifestSong(name, file, split, labels, error))
    return songs


@dataclass(frozen=True)
class Shard:
    """Songs that go into one file.

    Attributes:
        split: `train`, `val` or `test`.
        number: of the file within its split.
    """

    split: str
    number: int
    songs: tuple[ManifestSong, ...]

    @property
    def name(self) -> str:
        """As a path below the output folder."""
        return f"{self.split}/{self.number:05d}.parquet"


@dataclass(frozen=True)
class ExtractSettings:
    """How audio is extracted.

    Attributes:
        audio_dir: folder that the manifest's paths are relative to.
        encoder: folder, hub id or `apex-tiny`.
        workers: decoding processes, of each process that works.
        batch_segments: segments per encoder batch; None takes what is fast where it runs.
        device: `cpu`, `cuda`, ...; None takes a GPU where there is one.
        teacher: what gives the aesthetic labels of songs whose rows lack them, as `load_teacher`
            takes it; None: nothing does.
    """

    audio_dir: Path
    encoder: str
    workers: int = 0
    batch_segments: int | None = None
    device: str | None = None
    teacher: str | None = None


def plan(songs: Sequence[ManifestSong], size: int = SHARD_SONGS) -> list[Shard]:
    """Shards of `size` songs per split, in manifest order."""
    shards = []
    for split in dict.fromkeys(song.split for song in songs):
        members = [song for song in songs if song.split == split]
        shards += [
            Shard(split, number, tuple(members[start : start + size]))
            for number, start in enumerate(range(0, len(members), size))
        ]
    return shards


def start(
    songs: Sequence[ManifestSong], settings: ExtractSettings, output: Path, resume: bool
) -> list[Shard]:
    """Make the output folder ready; the shards to extract.

    Raises:
        UsageError: a run to resume that had another manifest, encoder, teacher or other audio.
    """
    work, plan_file = output / WORK, output / WORK / "plan.json"
    rows = text_hash(vars(song) for song in songs)
    inputs = [settings.audio_dir / song.path for song in songs if not song.error]
    inputs += sorted(file for file in Path(settings.encoder).rglob("*") if file.is_file())
    values = {"manifest": rows, "encoder": settings.encoder, "teacher": settings.teacher}
    stamp = Stamp(values, inputs)
    if not resume:
        for split in SPLITS:
            shutil.rmtree(output / split, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        (output / "failed.jsonl").unlink(missing_ok=True)
    elif plan_file.is_file():
        stamp.check(plan_file, output)
    for leftover in output.glob("*/.*.tmp"):  # a killed run's half-written file
        leftover.unlink()
    stamp.write(plan_file)
    return plan([song for song in songs if not song.error])


def extract_shards(
    model: ApexReward,
    shards: Sequence[Shard],
    settings: ExtractSettings,
    output: Path,
    teacher: Teacher | None = None,
) -> Iterator[int]:
    """Extract shards with one model; each file appears whole once it is done.

    The decoding workers run ahead over shard borders; the encoder's batches do not.

    Args:
        teacher: gives the aesthetic labels of songs whose manifest rows lack them.

    Yields:
        1 after every song.
    """
    assert SHARD_SONGS % BLOCK_SONGS == 0, "a shard's batches must not depend on its neighbours"
    source = EmbeddingSource.of_model(model)
    for group in _aligned(shards, BLOCK_SONGS):
        songs = [str(settings.audio_dir / song.path) for shard in group for song in shard.songs]
        results = encode_files(
            model, songs, batch_segments=settings.batch_segments, workers=settings.workers
        )
        for shard in group:
            found = []
            for _ in shard.songs:
                found.append(next(results))
                yield 1
            _finish(model, shard, found, source, settings, output, teacher)


def _aligned(shards: Sequence[Shard], block: int) -> Iterator[list[Shard]]:
    """Runs of shards that one stream of blocks can serve: only the last may be ragged."""
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if len(shard.songs) % block:
            yield group
            group = []
    if group:
        yield group


def _finish(
    model: ApexReward,
    shard: Shard,
    results: Sequence[SongResult],
    source: EmbeddingSource,
    settings: ExtractSettings,
    output: Path,
    teacher: Teacher | None,
) -> None:
    """Write a shard and, last, its failures: their file says that the shard is done."""
    errors = {s.audio_id: r.error for s, r in zip(shard.songs, results, strict=True) if r.error}
    todo = [s for s in shard.songs if s.audio_id not in errors]
    todo = [s for s in todo if not all(head in s.labels for head in AESTHETIC_HEADS)]
    labels: dict[str, dict[str, Any]] = {}
    if teacher is not None and todo:
        scores = call_teacher(teacher, [settings.audio_dir / song.path for song in todo])
        labels = {song.audio_id: row for song, row in zip(todo, scores, strict=True)}
        errors |= {name: row["error"] for name, row in labels.items() if "error" in row}
    rows = []
    for song, result in zip(shard.songs, results, strict=True):
        if song.audio_id not in errors:
            assert result.pieces is not None
            with torch.no_grad():
                pooled = model.pool(result.pieces.to(model.device)).float().cpu().numpy()
            own = song.labels | labels.get(song.audio_id, {}) | {"path": song.path}
            layers = np.asarray(result.pieces)
            rows.append(SongRows(song.audio_id, own, layers, pooled, result.weights))
    if rows:
        write_shard(output / shard.name, rows, source)
    failures = [s.failure(errors[s.audio_id]) for s in shard.songs if s.audio_id in errors]
    write_table(_failures_file(output, shard), failures)


def _failures_file(output: Path, shard: Shard) -> Path:
    return output / WORK / f"{shard.split}-{shard.number:05d}.jsonl"


def shard_worker(
    shards: Sequence[Shard],
    settings: ExtractSettings,
    output: Path,
    teacher: Teacher | None,
    device: str | None,
) -> Worker:
    """What extracts shards by their number in one process, its models on the device."""
    settings = replace(settings, device=device or settings.device)
    model = load_encoder(settings.encoder, usable_device(settings.device))
    if teacher is None and settings.teacher is not None:
        teacher = load_teacher(settings.teacher, settings.device)

    def work(numbers: Sequence[int]) -> Iterator[int]:
        asked = [shards[number] for number in numbers]
        todo = [shard for shard in asked if not _failures_file(output, shard).is_file()]
        yield from extract_shards(model, todo, settings, output, teacher)

    return work


def extract(
    songs: Sequence[ManifestSong],
    settings: ExtractSettings,
    output: Path,
    *,
    engine: Engine = Engine(),  # noqa: B008
    resume: bool = False,
    teacher: Teacher | None = None,
    on_song: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Extract a manifest: `output/<split>/*.parquet` and `output/failed.jsonl`.

    The shards are the same for any number of workers, processes or Ray actors.

    Args:
        engine: who works: this process, those that were launched with it, or Ray actors.
        resume: keep the shards that an interrupted run has finished.
        teacher: aesthetic labels for songs whose rows lack them (local engine).
        on_song: called after every song (local engine) or with every finished shard's songs.

    Returns:
        The failed songs: `audio_id`, `path`, `split`, `error`; on the first process only. Rows
        that `read_manifest` could not use are among them.
    """
    if engine.name == "ray" and teacher is not None:
        raise UsageError(
            "with the engine ray a teacher is loaded on every machine: name it in the settings "
            "(package.module:callable) instead of handing it over"
        )
    shards = plan([song for song in songs if not song.error])
    with ExitStack() as held:

        def begin() -> int:
            held.enter_context(writing(output / WORK))
            return len(start(songs, settings, output, resume))

        todo = range(engine.share.begun(begin))
        for done in engine.run(todo, partial(shard_worker, shards, settings, output, teacher)):
            for _ in range(done):
                on_song()
        if not engine.share.first:
            return []
        failed = [song.failure(song.error) for song in songs if song.error]
        failed += [row for shard in shards for row in read_jsonl(_failures_file(output, shard))]
        write_table(output / "failed.jsonl", failed)
        return failed
