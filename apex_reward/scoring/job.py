"""Score files into a result file: grows as results come, and goes on where it was killed."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.stamps import RunStamp, plain, provenance_path, text_hash
from apex_reward.files.tables import check_format, read_table, table_of, write_json
from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.rewards.provenance import provenance
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row, row_columns
from apex_reward.scoring.blocks import BlockFiles, BlockScorer, rows_of_blocks
from apex_reward.scoring.engines import Engine
from apex_reward.scoring.stream import ScoreSettings, score_songs

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.model.encode import Prompts

# Called with a row, and whether this run made it (or a former one left it).
OnRow = Callable[[Row, bool], None]


def score_to_file(
    reward: Reward,
    sources: Sequence[str],
    output: str | Path,
    settings: ScoreSettings | None = None,
    *,
    prompts: Prompts = None,
    columns: Sequence[dict[str, Any]] | None = None,
    workers: int = 0,
    engine: Engine = Engine(),  # noqa: B008
    resume: bool = False,
    on_row: OnRow = lambda row, fresh: None,
) -> None:
    """Score files into `output`, row by row; the same bytes for any workers and after any resume.

    Rows grow in `output.partial` (JSON lines), beside `output.partial.json`, which says what they
    were made with. A resumed run goes on at the last whole block of songs, with any engine. Where
    several processes work, each leaves its blocks in `output.partial.blocks`, and the first puts
    them together. What made the rows stays beside them in `output.meta.json`.

    Args:
        output: `.jsonl`, `.csv` or `.parquet`. With `settings.segments` a second file beside it
            has `.segments` before its ending.
        prompts: one per source, for models that read them.
        columns: further columns of each source's row (`prompt_id`, ...), passed through.
        workers: decoding processes, of each process that works.
        engine: who works: this process, those that were launched with it, or Ray actors.
        resume: go on where a killed run stopped; nothing is done where `output` exists.
        on_row: called with every row, and False for those that a former run left; on the first
            process only.

    Raises:
        UsageError: a wrong ending or mix, a partial file of other inputs, model or settings, or
            another run that is writing the same file.
    """
    settings = settings or ScoreSettings()
    check_format(output)
    if settings.rewarded:
        reward.check_single()
    run = _Run(reward, sources, Path(output), settings, prompts, columns)
    first = engine.share.first
    if resume and run.songs.path.exists():
        run.check_finished()
        for row in run.finished() if first else ():
            on_row(row, False)
        return
    with ExitStack() as held:

        def begin() -> int:
            held.enter_context(run.songs.locked())
            return run.start(resume, engine.several)

        begun = engine.share.begun(begin)
        for row in run.kept:
            on_row(row, False)
        for row in run.fresh(begun, workers, engine):
            on_row(row, True)
        if first:
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
        self.prompts, self.about = prompts, provenance(reward)
        extra = further_columns(columns or ())
        self.columns: list[dict[str, Any]] | None = None if columns is None else extra.to_pylist()
        names = row_columns(reward, settings.rewarded, settings.members)
        self.songs = GrowingTable(output, song_schema(names, list(extra.schema), self.about))
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
        self.kept: list[Row] = []
        folder = output.with_name(output.name + ".partial.blocks")
        self.blocks = BlockFiles(folder, len(sources), self.block if batches else BLOCK_SONGS)

    def check_finished(self) -> None:
        """Raises UsageError where the finished file was made with another reward."""
        about = provenance_path(self.songs.path)
        if about.is_file() and json.loads(about.read_text(encoding="utf-8")) != plain(self.about):
            raise UsageError(
                f"{self.songs.path} was made with another reward (see {about.name}); leave out "
                "--resume to start anew"
            )

    def finished(self) -> list[Row]:
        """The rows of the finished file; takes away what a kill in the very last step left."""
        self.songs.partial.unlink(missing_ok=True)
        self.stamp.clear()
        self.blocks.clear()
        rows: list[Row] = read_table(self.songs.path).to_pylist()
        return rows

    def start(self, resume: bool, several: bool) -> int:
        """Begin behind the rows that a former run left in order; their number."""
        if resume and ((rows := self.songs.written()) or self.blocks.begun):
            self.stamp.check(self.songs.partial)
            step = self.blocks.size if several or self.blocks.begun else self.block
            self.kept = self._whole(rows)
            if len(self.kept) < len(self.sources):
                self.kept = self.kept[: len(self.kept) // step * step]
        else:
            self.blocks.clear()
        self.songs.start(keep=len(self.kept))
        if self.settings.segments:
            self.parts.start(keep=sum(row["segments"] for row in self.kept))
        # Only now: a stamp must never stand beside rows of another run.
        self.stamp.write()
        return len(self.kept)

    def fresh(self, start: int, workers: int, engine: Engine) -> Iterator[Row]:
        """The rows that are not there yet, each written as it comes."""
        if engine.several or self.blocks.begun:
            scorer = BlockScorer(
                self.reward, self.sources, self.prompts, self.settings, self.blocks, self.block,
                workers,
            )  # fmt: skip
            rows = rows_of_blocks(engine, scorer, self.blocks.after(start))
        else:
            rows = score_songs(
                self.reward,
                self.sources[start:],
                None if self.prompts is None else self.prompts[start:],
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
        self.blocks.clear()

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


def further_columns(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """What lists say of their songs, a column of one kind each: lists and mappings as JSON text."""
    plain = (str, int, float, bool, type(None))
    return table_of(
        [{k: v if isinstance(v, plain) else json.dumps(v, default=str) for k, v in row.items()}
         for row in rows]
    )  # fmt: skip


def song_schema(
    names: Sequence[str], extra: Sequence[pa.Field], about: dict[str, Any]
) -> pa.Schema:
    """Columns and types of a result file; `names` are its numbers, the metadata what made it."""
    import pyarrow as pa

    return pa.schema(
        [
            *extra,
            ("path", pa.string()),
            ("duration", pa.float64()),
            ("sample_rate", pa.int64()),
            ("segments", pa.int64()),
            *((name, pa.float64()) for name in names),
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
