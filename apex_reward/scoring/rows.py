"""Songs of files to rows, as a stream, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import pyarrow as pa

from apex_reward.errors import UsageError
from apex_reward.files.tables import as_text, printable, table_of
from apex_reward.model.encode import Prompts
from apex_reward.rewards.cascade import JUDGED_BY, cascade_rows
from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import FILE_COLUMNS, Row, row_columns, segment_rows, song_row
from apex_reward.scoring.lists import Input, Songs


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
    songs = Songs(sources, prompts)
    if reward.student is None:
        rows = rows_of(reward, songs, settings, workers, block)
    else:
        rows = cascaded(
            reward, songs, settings, groups,
            lambda one, part: list(rows_of(one, part, ScoreSettings(True), workers, block)),
        )  # fmt: skip
    own = list_columns(sources, result_columns(reward, settings)).to_pylist() or repeat({})
    for columns, row in zip(own, rows, strict=False):
        yield {**columns, **row}


def rows_of(
    reward: Reward, songs: Songs, settings: ScoreSettings, workers: int, block: int
) -> Iterator[Row]:
    """The rows without the columns of lists.

    Args:
        block: songs after which encoder batches are encoded, full or not.
    """
    if settings.rewarded:
        reward.check_single()
    how = reward.engine_settings(block=block)
    results = reward.results(songs.paths, songs.prompts, workers=workers, settings=how)
    for name, result in zip(songs.names, results, strict=True):
        row = song_row(reward, result, settings.rewarded, settings.members)
        segments = segment_rows(reward, result) if settings.segments else []
        if name is not None:
            for named in (row, *segments):
                named["path"] = printable(name)
        if settings.segments:
            row["segment_rows"] = segments
        yield row


def cascaded(
    reward: Reward,
    songs: Songs,
    settings: ScoreSettings,
    groups: Sequence[str] | None,
    score: Callable[[Reward, Songs], list[Row]],
) -> Iterator[Row]:
    """The rows of a cascade, all at the end.

    Args:
        score: rows of songs by the student, then by the teacher.

    Raises:
        UsageError: rows per segment or of single members: some songs have no heads.
    """
    if settings.segments or settings.members:
        raise UsageError("a cascade gives a row per song; leave out --segments and --members")
    count = len(songs.sources)
    yield from cascade_rows(reward, count, lambda one, n: score(one, songs.take(n)), groups)


def result_columns(reward: Reward, settings: ScoreSettings) -> list[str]:
    """The columns of a row in order, without those of lists."""
    names = row_columns(reward, settings.rewarded, settings.members)
    cascade = [] if reward.student is None else [JUDGED_BY]
    return [*FILE_COLUMNS, *names, *cascade, "flags", "error"]


def list_columns(sources: Sequence[str | Input], taken: Sequence[str]) -> pa.Table:
    """The columns of lists, of one kind each, under names that no result column has.

    A column of the name of a result column is kept as `input.<name>`. Lists and mappings are JSON
    text. An existing `input.` column stays as it is.

    Args:
        taken: names of the result columns.
    """
    cells = [song.columns if isinstance(song, Input) else {} for song in sources]
    names = kept_names(dict.fromkeys(name for row in cells for name in row), taken)
    rows = [{names[name]: _plain(cell) for name, cell in row.items()} for row in cells if names]
    return table_of(rows).select(list(names.values()))


def kept_names(given: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """The name under which a table keeps each of its columns: `input.<name>` where it is taken.

    An existing `input.` column stays as it is.

    >>> kept_names(["reward", "song", "input.reward"], ["reward"])
    {'reward': 'input.input.reward', 'song': 'song', 'input.reward': 'input.reward'}
    """
    names = dict.fromkeys(given, "")
    free = {name for name in names if name not in taken}
    for name in names:
        kept = name
        while kept in taken or (kept != name and kept in free):
            kept = f"input.{kept}"
        names[name] = kept
        free.add(kept)
    return names


def _plain(cell: Any) -> Any:
    plain = cell is None or isinstance(cell, (str, int, float))
    return cell if plain else as_text(cell)


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
