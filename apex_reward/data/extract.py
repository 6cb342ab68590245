"""Audio to shards: a manifest cut into fixed shards, each extracted by one pure function.

A shard is a block of `apex_reward.scoring.engines`: done by this process, one process per GPU
(`accelerate launch`), or a Ray actor on another machine. It is written whole, so that a killed
run goes on with the shards it lacks and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
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
from apex_reward.errors import DataError, listed
from apex_reward.files.atomic import writing
from apex_reward.files.stamps import Stamp, text_hash
from apex_reward.files.tables import read_jsonl, read_table, with_numbers, write_table
from apex_reward.model.apex import ApexReward
from apex_reward.rewards.engine import BLOCK_SONGS, SongResult, encode_files
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

    @property
    def failures(self) -> str:
        """The file of its failed songs, as a path below the output folder; written last."""
        return f"{WORK}/{self.split}-{self.number:05d}.jsonl"


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


@dataclass(frozen=True)
class Extractor:
    """Extracts shards with one model; each file appears whole once it is done.

    Args:
        teacher: gives the aesthetic labels of songs whose manifest rows lack them.
    """

    model: ApexReward
    settings: ExtractSettings
    output: Path
    teacher: Teacher | None = None

    @cached_property
    def source(self) -> EmbeddingSource:
        """What makes the embeddings."""
        return EmbeddingSource.of_model(self.model)

    def run(self, shards: Sequence[Shard]) -> Iterator[int]:
        """Extract shards that are not done.

        The decoding workers run ahead over shard borders; the encoder's batches do not.

        Yields:
            1 after every song.
        """
        assert SHARD_SONGS % BLOCK_SONGS == 0, "a shard's batches must not depend on its neighbours"
        audio, group = self.settings.audio_dir, list[Shard]()
        todo = [shard for shard in shards if not (self.output / shard.failures).is_file()]
        for shard in todo:
            group.append(shard)
            # One stream of blocks serves a run of shards: only the last of them may be ragged.
            if shard is not todo[-1] and not len(shard.songs) % BLOCK_SONGS:
                continue
            results = encode_files(
                self.model, [str(audio / song.path) for one in group for song in one.songs],
                batch_segments=self.settings.batch_segments, workers=self.settings.workers,
            )  # fmt: skip
            for one in group:
                found = []
                for _ in one.songs:
                    found.append(next(results))
                    yield 1
                self._finish(one, found)
            group = []

    def _finish(self, shard: Shard, results: Sequence[SongResult]) -> None:
        """Write a shard and, last, its failures."""
        both = list(zip(shard.songs, results, strict=True))
        errors = {song.audio_id: result.error for song, result in both if result.error}
        todo = [s for s in shard.songs if s.audio_id not in errors]
        todo = [s for s in todo if not all(head in s.labels for head in AESTHETIC_HEADS)]
        labels: dict[str, dict[str, Any]] = {}
        if self.teacher is not None and todo:
            paths = [self.settings.audio_dir / song.path for song in todo]
            scores = call_teacher(self.teacher, paths)
            labels = {song.audio_id: row for song, row in zip(todo, scores, strict=True)}
            errors |= {name: row["error"] for name, row in labels.items() if "error" in row}
        rows = []
        for song, result in both:
            if song.audio_id not in errors:
                assert result.pieces is not None
                with torch.no_grad():
                    pooled = self.model.pool(result.pieces.to(self.model.device)).float().cpu()
                own = song.labels | labels.get(song.audio_id, {}) | {"path": song.path}
                layers = np.asarray(result.pieces)
                rows.append(SongRows(song.audio_id, own, layers, pooled.numpy(), result.weights))
        if rows:
            write_shard(self.output / shard.name, rows, self.source)
        failures = [s.failure(errors[s.audio_id]) for s in shard.songs if s.audio_id in errors]
        write_table(self.output / shard.failures, failures)


def shard_worker(
    shards: Sequence[Shard], settings: ExtractSettings, output: Path, device: str | None
) -> Worker:
    """What extracts shards by their number in one process, its models on the device."""
    device = device or settings.device
    model = load_encoder(settings.encoder, usable_device(device))
    teacher = None if settings.teacher is None else load_teacher(settings.teacher, device)
    extractor = Extractor(model, settings, output, teacher)
    return lambda numbers: extractor.run([shards[number] for number in numbers])


def extract(
    songs: Sequence[ManifestSong],
    settings: ExtractSettings,
    output: Path,
    *,
    engine: Engine = Engine(),  # noqa: B008
    resume: bool = False,
    on_song: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Extract a manifest: `output/<split>/*.parquet` and `output/failed.jsonl`.

    The shards are the same for any number of workers, processes or Ray actors.

    Args:
        engine: who works: this process, those that were launched with it, or Ray actors.
        resume: keep the shards that an interrupted run has finished.
        on_song: called after every song (local engine) or with every finished shard's songs.

    Returns:
        The failed songs: `audio_id`, `path`, `split`, `error`; on the first process only. Rows
        that `read_manifest` could not use are among them.
    """
    shards = plan([song for song in songs if not song.error])
    with ExitStack() as held:

        def begin() -> int:
            held.enter_context(writing(output / WORK))
            return len(start(songs, settings, output, resume))

        todo = range(engine.share.begun(begin))
        for done in engine.run(todo, partial(shard_worker, shards, settings, output)):
            for _ in range(done):
                on_song()
        if not engine.share.first:
            return []
        failed = [song.failure(song.error) for song in songs if song.error]
        failed += [row for shard in shards for row in read_jsonl(output / shard.failures)]
        write_table(output / "failed.jsonl", failed)
        return failed
