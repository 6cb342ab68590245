"""Score files into a result file: grows as results come, and goes on where it was killed."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.stamps import RunStamp, plain, provenance_path, text_hash
from apex_reward.files.tables import check_format, read_table, write_json
from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.rewards.provenance import provenance
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import Row, row_columns, song_row

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.model.encoded import Prompts

# Called with a row, and whether this run made it (or a former one left it).
OnRow = Callable[[Row, bool], None]


@dataclass(frozen=True)
class ScoreSettings:
    """What decides the rows of a run, beside the reward and the inputs.

    Args:
        rewarded: add `reward_raw` and `reward`.
        segments: write the second file, a row per segment.
    """

    rewarded: bool = False
    segments: bool = False


def score_songs(
    reward: Reward | Models,
    sources: Sequence[str],
    prompts: Prompts = None,
    settings: ScoreSettings | None = None,
    *,
    workers: int = 0,
    block: int = BLOCK_SONGS,
) -> Iterator[Row]:
    """Score files: one row per source, in their order, each as soon as it is ready.

    Yields:
        Rows as `song_row` makes them; with `segments` the key `segment_rows` too.

    Raises:
        UsageError: missing prompts, or a mix that needs groups.
    """
    settings, reward = settings or ScoreSettings(), as_reward(reward)
    if settings.rewarded:
        reward.check_single()
    heard = reward.engine_settings(block=block, pieces=settings.segments)
    for result in reward.results(sources, prompts, workers=workers, settings=heard):
        row = song_row(reward, result, settings.rewarded)
        if settings.segments:
            row["segment_rows"] = reward.segment_rows(result)
        yield row


def score_to_file(
    reward: Reward,
    sources: Sequence[str],
    output: str | Path,
    settings: ScoreSettings | None = None,
    *,
    prompts: Prompts = None,
    columns: Sequence[dict[str, Any]] | None = None,
    workers: int = 0,
    resume: bool = False,
    on_row: OnRow = lambda row, fresh: None,
) -> None:
    """Score files into `output`, row by row; the same bytes for any workers and after any resume.

    Rows grow in `output.partial` (JSON lines), beside `output.partial.json`, which says what they
    were made with. A resumed run goes on at the last whole block of songs. What made the rows stays
    beside them in `output.meta.json`.

    Args:
        output: `.jsonl`, `.csv` or `.parquet`. With `settings.segments` a second file beside it
            has `.segments` before its ending.
        prompts: one per source, for models that read them.
        columns: further columns of each source's row (`prompt_id`, ...), passed through.
        resume: go on where a killed run stopped; nothing is done where `output` exists.
        on_row: called with every row, and False for those that a former run left.

    Raises:
        UsageError: a wrong ending or mix, a partial file of other inputs, model or settings, or
            another run that is writing the same file.
    """
    settings = settings or ScoreSettings()
    check_format(output)
    if settings.rewarded:
        reward.check_single()
    run = _Run(reward, sources, Path(output), settings, prompts, columns)
    if resume and run.songs.path.exists():
        run.check_finished()
        run.sweep()
        for row in read_table(run.songs.path).to_pylist():
            on_row(row, False)
        return
    with run.songs.locked():
        kept = run.start(resume)
        for row in kept:
            on_row(row, False)
        for row in run.fresh(len(kept), workers):
            on_row(row, True)
        run.finish()


class _Run:
    """One scoring run into one file."""

    def __init__(
        self,
        reward: Reward,
        sources: Sequence[str],
        output: Path,
        settings: ScoreSettings,
        prompts: Prompts,
        columns: Sequence[dict[str, Any]] | None,
    ) -> None:
        self.reward, self.sources, self.settings = reward, sources, settings
        self.prompts, self.columns = prompts, columns
        self.about = provenance(reward)
        extra = list(dict.fromkeys(name for row in columns or () for name in row))
        self.songs = GrowingTable(output, song_schema(reward, settings.rewarded, extra, self.about))
        self.parts = GrowingTable(segments_path(output), segment_schema(reward, self.about))
        self.stamp = RunStamp(
            output.with_name(output.name + ".partial.json"),
            {
                "inputs": text_hash(sources),
                "prompts": text_hash(prompts or ()),
                "reward": self.about,
                "settings": vars(settings),
            },
        )
        batches = [encoder.batch_segments for encoder in reward.parts.encoders]
        # Models without batches give a song the same bits wherever a run begins.
        self.block = block_songs(reward.batch_segments or max(batches)) if batches else 1

    def check_finished(self) -> None:
        """Raises UsageError where the finished file was made with another reward."""
        about = provenance_path(self.songs.path)
        if about.is_file() and json.loads(about.read_text(encoding="utf-8")) != plain(self.about):
            raise UsageError(
                f"{self.songs.path} was made with another reward (see {about.name}); leave out "
                "--resume to start anew"
            )

    def sweep(self) -> None:
        """Take away what a kill in the very last step left."""
        self.songs.partial.unlink(missing_ok=True)
        self.stamp.clear()

    def start(self, resume: bool) -> list[Row]:
        """Begin, behind the rows that a former run left."""
        kept: list[Row] = []
        if resume and (rows := self.songs.written()):
            self.stamp.check(self.songs.partial)
            kept = self._whole(rows)
            if len(kept) < len(self.sources):
                kept = kept[: len(kept) // self.block * self.block]
        self.songs.start(keep=len(kept))
        if self.settings.segments:
            self.parts.start(keep=sum(row["segments"] for row in kept))
        # Only now: a stamp must never stand beside rows of another run.
        self.stamp.write()
        return kept

    def fresh(self, start: int, workers: int) -> Iterator[Row]:
        """The rows that are not there yet, each written as it comes."""
        prompts = None if self.prompts is None else self.prompts[start:]
        rows = score_songs(
            self.reward,
            self.sources[start:],
            prompts,
            self.settings,
            workers=workers,
            block=self.block,
        )
        for number, row in enumerate(rows, start):
            # Segments first: a song's row says that its segments are there.
            if self.settings.segments:
                self.parts.append(row.pop("segment_rows"))
            if self.columns is not None:
                row = {**self.columns[number], **row}
            self.songs.append([row])
            yield row

    def finish(self) -> None:
        """Give the files their names."""
        if self.settings.segments:
            self.parts.finish()
        write_json(provenance_path(self.songs.path), self.about)
        self.songs.finish()
        self.stamp.clear()

    def _whole(self, rows: list[Row]) -> list[Row]:
        """The rows whose segments were written too."""
        if not self.settings.segments:
            return rows
        ends = list(accumulate(row["segments"] for row in rows))
        return rows[: bisect_right(ends, len(self.parts.written()))]


def block_songs(batch_segments: int) -> int:
    """Songs per block: a kill costs at most these; only a block's last batch is not full."""
    return max(BLOCK_SONGS, 4 * batch_segments)


def segments_path(output: Path) -> Path:
    """The second file's path.

    >>> segments_path(Path("out/scores.csv")).name
    'scores.segments.csv'
    """
    return output.with_name(f"{output.stem}.segments{output.suffix}")


def song_schema(
    reward: Reward, rewarded: bool, extra: Sequence[str], about: dict[str, Any]
) -> pa.Schema:
    """Columns and types of a result file; the metadata says what made it."""
    import pyarrow as pa

    return pa.schema(
        [
            *((name, pa.string()) for name in extra),
            ("path", pa.string()),
            ("duration", pa.float64()),
            ("sample_rate", pa.int64()),
            ("segments", pa.int64()),
            *((name, pa.float64()) for name in row_columns(reward, rewarded)),
            ("flags", pa.list_(pa.string())),
            ("error", pa.string()),
        ],
        metadata=_metadata(about),
    )


def segment_schema(reward: Reward, about: dict[str, Any]) -> pa.Schema:
    """Columns and types of the file with a row per segment."""
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("segment", pa.int64()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            *((name, pa.float64()) for name in row_columns(reward, rewarded=False)),
        ],
        metadata=_metadata(about),
    )


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    return {f"apex_reward.{name}": json.dumps(value) for name, value in about.items()}
