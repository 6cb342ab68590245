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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.data.shards import EmbeddingSource, SongRows, write_shard
from apex_reward.data.teacher import Teacher, TeacherScores, call_teacher, load_teacher
from apex_reward.errors import UsageError
from apex_reward.files.atomic import writing
from apex_reward.files.stamps import Stamp, text_hash
from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.scores.apex import AESTHETIC_HEADS
from apex_reward.scoring.engines import Engine, Worker

if TYPE_CHECKING:
    from apex_reward.model.apex import ApexReward
    from apex_reward.rewards.engine import SongResult

# A multiple of the scoring engine's block, so that a shard's batches are its own.
SHARD_SONGS = 64
WORK = ".extract"


@dataclass(frozen=True)
class ManifestSong:
    """A song to extract: where its audio is, and the labels that go with it."""

    audio_id: str
    path: str
    split: str
    labels: dict[str, Any]


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

    def loaded_teacher(self) -> Teacher | None:
        """The teacher, in the process that needs it."""
        return None if self.teacher is None else load_teacher(self.teacher, self.device)


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


def start(shards: Sequence[Shard], output: Path, resume: bool, teacher: str | None = None) -> int:
    """Make the output folder ready; how many shards there are.

    Raises:
        UsageError: a run to resume that had another manifest or teacher.
    """
    work = output / WORK
    manifest = text_hash((s.name, [song.audio_id for song in s.songs]) for s in shards)
    stamp, plan = Stamp({"manifest": manifest, "teacher": teacher}), work / "plan.json"
    if not resume:
        for split in dict.fromkeys(shard.split for shard in shards):
            shutil.rmtree(output / split, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        (output / "failed.jsonl").unlink(missing_ok=True)
    elif plan.is_file():
        stamp.check(plan, output)
    for leftover in output.glob("*/.*.tmp"):  # a killed run's half-written file
        leftover.unlink()
    stamp.write(plan)
    return len(shards)


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
    from apex_reward.rewards.encode import encode_files
    from apex_reward.rewards.engine import BLOCK_SONGS

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
    heard = [s for s, r in zip(shard.songs, results, strict=True) if r.error is None]
    labels, errors = _taught(heard, settings, teacher)
    errors |= {s.audio_id: r.error for s, r in zip(shard.songs, results, strict=True) if r.error}
    rows = [
        _rows(model, replace(song, labels={**song.labels, **labels.get(song.audio_id, {})}), result)
        for song, result in zip(shard.songs, results, strict=True)
        if song.audio_id not in errors
    ]
    if rows:
        write_shard(output / shard.name, rows, source)
    failures = [
        {"audio_id": s.audio_id, "path": s.path, "split": s.split, "error": errors[s.audio_id]}
        for s in shard.songs
        if s.audio_id in errors
    ]
    write_table(_failures_file(output, shard), failures)


def _taught(
    songs: Sequence[ManifestSong], settings: ExtractSettings, teacher: Teacher | None
) -> tuple[TeacherScores, dict[str, str]]:
    """Labels of the songs whose rows lack them, and why the teacher gave none."""
    todo = [s for s in songs if not all(head in s.labels for head in AESTHETIC_HEADS)]
    if teacher is None or not todo:
        return {}, {}
    paths = [settings.audio_dir / song.path for song in todo]
    return call_teacher(teacher, [song.audio_id for song in todo], paths)


def _rows(model: ApexReward, song: ManifestSong, result: SongResult) -> SongRows:
    import torch

    assert result.pieces is not None
    with torch.no_grad():
        pooled = model.pool(result.pieces.to(model.device)).float().cpu().numpy()
    labels = {**song.labels, "path": song.path}
    return SongRows(song.audio_id, labels, np.asarray(result.pieces), pooled, result.weights)


def _failures_file(output: Path, shard: Shard) -> Path:
    return output / WORK / f"{shard.split}-{shard.number:05d}.jsonl"


def finish(shards: Sequence[Shard], output: Path) -> list[dict[str, Any]]:
    """Gather every shard's failures in `failed.jsonl`, in manifest order; returns them."""
    failed = [row for shard in shards for row in read_jsonl(_failures_file(output, shard))]
    write_table(output / "failed.jsonl", failed)
    return failed


@dataclass(frozen=True)
class ShardWork:
    """What extracts shards by their number; without a teacher at hand Ray's actors can get it."""

    shards: Sequence[Shard]
    settings: ExtractSettings
    output: Path
    teacher: Teacher | None = None

    def __call__(self, device: str | None) -> Worker:
        """The worker of one process, its models on the device."""
        from apex_reward.data.encoder import load_encoder
        from apex_reward.rewards.load import usable_device

        settings = replace(self.settings, device=device or self.settings.device)
        model = load_encoder(settings.encoder, usable_device(settings.device))
        teacher = self.teacher or settings.loaded_teacher()

        def work(numbers: Sequence[int]) -> Iterator[int]:
            shards = [self.shards[number] for number in numbers]
            todo = [s for s in shards if not _failures_file(self.output, s).is_file()]
            yield from extract_shards(model, todo, settings, self.output, teacher)

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
        The failed songs: `audio_id`, `path`, `split`, `error`; on the first process only.
    """
    if engine.name == "ray" and teacher is not None:
        raise UsageError(
            "with the engine ray a teacher is loaded on every machine: name it in the settings "
            "(package.module:callable) instead of handing it over"
        )
    shards = plan(songs)
    with ExitStack() as held:

        def begin() -> int:
            held.enter_context(writing(output / WORK))
            return start(shards, output, resume, settings.teacher)

        todo = range(engine.share.begun(begin))
        for done in engine.run(todo, ShardWork(shards, settings, output, teacher)):
            for _ in range(done):
                on_song()
        return finish(shards, output) if engine.share.first else []
