"""Songs of files to rows, as a stream, in blocks of files, and counted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from apex_reward.errors import UsageError
from apex_reward.files.tables import (
    as_text,
    json_line,
    printable,
    read_jsonl,
    table_of,
    write_text,
)
from apex_reward.model.encode import Prompts
from apex_reward.rewards.cascade import JUDGED_BY, cascade_rows
from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import Row, row_columns, song_row
from apex_reward.scoring.engines import Engine, Worker
from apex_reward.scoring.lists import Input

FILE_COLUMNS = ("path", "duration", "sample_rate", "segments")
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class ScoreSettings:
    """What decides the rows of a run, beside the reward and the inputs.

    Args:
        rewarded: add `reward_raw` and `reward`.
        segments: write the second file, a row per segment.
        members: add the scores of each member of an ensemble.
    """

    rewarded: bool = False
    segments: bool = False
    members: bool = False


def score_songs(
    reward: Reward | Models,
    sources: Sequence[str | Input],
    prompts: Prompts = None,
    settings: ScoreSettings | None = None,
    *,
    workers: int = 0,
    block: int = BLOCK_SONGS,
    groups: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Score files: one row per source, in their order, each as soon as it is ready.

    Args:
        sources: paths, or what `find_songs` gives; the columns of their lists stand first in their
            rows, as in a file of `score_to_file`.
        groups: the prompt of each source, for a cascade.

    Yields:
        Rows as `song_row` makes them; with `segments` the key `segment_rows` too.

    Raises:
        UsageError: missing prompts, or a mix that needs groups.
    """
    settings, reward = settings or ScoreSettings(), as_reward(reward)
    further = Further(sources, result_columns(reward, settings))
    if reward.student is None:
        rows = _rows(reward, sources, prompts, settings, workers, block)
    else:
        check_cascade(settings)

        def score(one: Reward, numbers: Sequence[int]) -> list[Row]:
            part = [sources[number] for number in numbers]
            texts = None if prompts is None else [prompts[number] for number in numbers]
            return list(_rows(one, part, texts, ScoreSettings(True), workers, block))

        rows = iter(cascade_rows(reward, len(sources), score, groups))
    for number, row in enumerate(rows):
        yield further.joined(number, row)


def check_cascade(settings: ScoreSettings) -> None:
    """Refuse settings that a cascade cannot follow: some songs have no heads.

    Raises:
        UsageError: rows per segment or of single members.
    """
    if settings.segments or settings.members:
        raise UsageError("a cascade gives a row per song; leave out --segments and --members")


def _rows(
    reward: Reward,
    sources: Sequence[str | Input],
    prompts: Prompts,
    settings: ScoreSettings,
    workers: int,
    block: int,
) -> Iterator[Row]:
    """The rows without the columns of lists."""
    if settings.rewarded:
        reward.check_single()
    how = reward.engine_settings(block=block, pieces=settings.segments)
    results = reward.results(paths_of(sources), prompts, workers=workers, settings=how)
    for source, result in zip(sources, results, strict=True):
        row = song_row(reward, result, settings.rewarded, settings.members)
        segments = reward.segment_rows(result) if settings.segments else []
        if isinstance(source, Input) and source.name is not None:
            for named in (row, *segments):
                named["path"] = printable(source.name)
        if settings.segments:
            row["segment_rows"] = segments
        yield row


def paths_of(sources: Sequence[str | Input]) -> list[str]:
    """The files of sources."""
    return [source.path if isinstance(source, Input) else source for source in sources]


def bare(source: str | Input) -> Input:
    """A source without the columns of its list."""
    return Input(source.path, {}, source.name) if isinstance(source, Input) else Input(source)


def result_columns(reward: Reward, settings: ScoreSettings) -> list[str]:
    """The columns of a row in order, without those of lists."""
    names = row_columns(reward, settings.rewarded, settings.members)
    cascade = [] if reward.student is None else [JUDGED_BY]
    return [*FILE_COLUMNS, *names, *cascade, "flags", "error"]


class Further:
    """The columns of lists, of one kind each, under names that no result column has.

    A column of the name of a result column is kept as `input.<name>`. Lists and mappings are JSON
    text. An existing `input.` column stays as it is.

    Args:
        sources: the songs.
        taken: names of the result columns.
    """

    def __init__(self, sources: Sequence[str | Input], taken: Sequence[str]) -> None:
        self.rows: list[Row] = []
        self.schema: pa.Schema = pa.schema([])
        cells = [source.columns if isinstance(source, Input) else {} for source in sources]
        given = dict.fromkeys(name for row in cells for name in row)
        if not given:
            return
        names: dict[str, str] = {name: name for name in given if name not in taken}
        for name in given:
            kept = name
            while kept in taken or (kept != name and kept in names.values()):
                kept = f"input.{kept}"
            names[name] = kept
        table = table_of(
            [{names[name]: _plain(cell) for name, cell in row.items()} for row in cells]
        ).select([names[name] for name in given])  # fmt: skip
        self.rows, self.schema = table.to_pylist(), table.schema

    def joined(self, number: int, row: Row) -> Row:
        """The row of an input with the columns of its list."""
        return {**self.rows[number], **row} if self.rows else row


def _plain(cell: Any) -> Any:
    return cell if isinstance(cell, PLAIN) else as_text(cell)


@dataclass(frozen=True)
class Blocks:
    """Rows that several processes make: a file per block of songs, put together in input order.

    It scores blocks into their files, and is picklable, so that Ray's actors get it.

    Args:
        folder: of the files, that every process sees.
        size: songs of a block; the last may have fewer.
        encoder_block: songs after which batches are encoded, full or not; divides `size`.
    """

    reward: Reward
    sources: Sequence[str | Input]
    prompts: Any
    settings: ScoreSettings
    folder: Path
    size: int
    encoder_block: int
    workers: int

    @property
    def begun(self) -> bool:
        """Whether a former run left any."""
        return self.folder.is_dir() and any(self.folder.glob("*.jsonl"))

    def clear(self) -> None:
        """Remove them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def file(self, number: int) -> Path:
        """The file of a block."""
        return self.folder / f"{number:06d}.jsonl"

    def rows(self, engine: Engine, done: int) -> Iterator[Row]:
        """The rows behind the first `done`, as their files appear; none on a later process."""
        todo = range(-(-done // self.size), -(-len(self.sources) // self.size))
        ahead = list(reversed(todo if engine.share.first else ()))
        for _ in engine.run(todo, self):
            while ahead and self.file(ahead[-1]).exists():
                yield from read_jsonl(self.file(ahead.pop()))
        while ahead:
            yield from read_jsonl(self.file(ahead.pop()))

    def stream(self, done: int) -> Iterator[Row]:
        """The rows behind the first `done`, made in this process without files."""
        texts = None if self.prompts is None else self.prompts[done:]
        return _rows(self.reward, self.sources[done:], texts, self.settings, self.workers,
                     self.encoder_block)  # fmt: skip

    def __call__(self, device: str | None) -> Worker:
        """The worker of one process, its models on the device."""
        if device is not None:
            self.reward.parts.to(device)
        return self._score

    def _score(self, numbers: Sequence[int]) -> Iterator[int]:
        """Score the blocks that have no file yet; the decoders run ahead over their borders."""
        todo = [number for number in numbers if not self.file(number).exists()]
        parts = [self.sources[n * self.size : (n + 1) * self.size] for n in todo]
        texts = self.prompts
        if texts is not None:
            texts = [text for n in todo for text in texts[n * self.size : (n + 1) * self.size]]
        sources = [source for part in parts for source in part]
        rows = _rows(self.reward, sources, texts, self.settings, self.workers, self.encoder_block)
        for number, part in zip(todo, parts, strict=True):
            made = list(islice(rows, len(part)))
            write_text(self.file(number), "".join(map(json_line, made)))
            yield len(made)


@dataclass
class Tally:
    """Counts rows as they come; `speed` is over the rows of this run only.

    Attributes:
        songs, failed: rows, and those with an error.
        seconds: of audio in the rows without one.
        reasons: a line `path: reason` for each failure.
    """

    songs: int = 0
    failed: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    _fresh_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def count(self, row: Mapping[str, Any], fresh: bool = True) -> None:
        """Add a row; `fresh` is False for one that a former run left."""
        self.songs += 1
        if row["error"]:
            self.failed += 1
            self.reasons.append(printable(f"{row['path']}: {row['error']}"))
        else:
            self.seconds += row["duration"]
            self._fresh_seconds += row["duration"] if fresh else 0.0

    @property
    def hours(self) -> float:
        """Hours of audio scored."""
        return self.seconds / 3600

    @property
    def speed(self) -> float:
        """Seconds of audio per second of wall time."""
        return self._fresh_seconds / (time.perf_counter() - self._started)

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        songs = "1 song" if self.songs == 1 else f"{self.songs} songs"
        length = f"{self.hours:.2f} h" if self.hours >= 1 else f"{self.seconds:.1f} s"
        return f"{songs}{failed}, {length} of audio, {self.speed:.1f} x real time"
