"""Score files into a result file: grows as results come, and goes on where it was killed."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from apex_reward.files.growing import GrowingTable
from apex_reward.files.stamps import Stamp, provenance_path, text_hash
from apex_reward.files.tables import check_format, check_output, read_rows
from apex_reward.model.encode import Prompts
from apex_reward.rewards.cascade import JUDGED_BY, cascade_rows
from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row, row_columns
from apex_reward.rewards.saved import provenance
from apex_reward.scoring.engines import Engine
from apex_reward.scoring.lists import Input
from apex_reward.scoring.rows import (
    Blocks,
    Further,
    ScoreSettings,
    bare,
    check_cascade,
    paths_of,
    result_columns,
)

# Called with a row, and whether this run made it (or a former one left it).
OnRow = Callable[[Row, bool], None]


def score_to_file(
    reward: Reward,
    sources: Sequence[str | Input],
    output: str | Path,
    settings: ScoreSettings | None = None,
    *,
    prompts: Prompts = None,
    workers: int = 0,
    engine: Engine = Engine(),  # noqa: B008
    resume: bool = False,
    on_row: OnRow = lambda row, fresh: None,
    groups: Sequence[str] | None = None,
) -> None:
    """Score files into `output`, row by row; the same bytes for any workers and after any resume.

    Rows grow in `output.partial` (JSON lines), beside `output.partial.json`, the stamp of
    everything that they depend on. A resumed run goes on at the last whole block of songs, with any
    engine. Where several processes work, each leaves its blocks in `output.partial.blocks`, and the
    first puts them together. The stamp stays beside the result, as `output.meta.json`.

    Args:
        sources: paths, or what `find_songs` gives with the further columns of lists.
        output: `.jsonl`, `.csv` or `.parquet`. With `settings.segments` a second file beside it
            has `.segments` before its ending.
        prompts: one per source, for models that read them.
        workers: decoding processes, of each process that works.
        engine: who works: this process, those that were launched with it, or Ray actors.
        resume: go on where a killed run stopped; nothing is done where `output` is finished.
        on_row: called with every row, and False for those that a former run left; on the first
            process only.
        groups: the prompt of each source, for a cascade. Its rows appear at the end; what student
            and teacher score grows in `output` with `.student.jsonl` and `.teacher.jsonl` behind
            its name.

    Raises:
        UsageError: a wrong ending or mix, an output that is an input, a result of other inputs,
            model or settings, or another run that is writing the same file.
    """
    settings = settings or ScoreSettings()
    check_format(output)
    if settings.rewarded:
        reward.check_single()
    if reward.student is not None:
        _cascade_to_file(
            reward, sources, Path(output), settings, prompts, groups, resume, on_row,
            {"workers": workers, "engine": engine},
        )  # fmt: skip
        return
    run = _Run(reward, sources, Path(output), settings, prompts, workers)
    first = engine.share.first
    if resume and run.songs.path.exists() and not run.songs.partial.exists():
        run.stamp.check(run.stamp_path, run.songs.path)
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
        for row in run.fresh(begun, engine):
            on_row(row, True)
        if first:
            run.finish()


def _cascade_to_file(
    reward: Reward,
    sources: Sequence[str | Input],
    output: Path,
    settings: ScoreSettings,
    prompts: Prompts,
    groups: Sequence[str] | None,
    resume: bool,
    on_row: OnRow,
    how: dict[str, Any],
) -> None:
    """`score_to_file` of a cascade: a file of the student, one of the teacher, then both joined."""
    check_cascade(settings)
    settings, share = replace(settings, rewarded=True), how["engine"].share
    run = _Run(reward, sources, output, settings, prompts, how["workers"], groups)
    if resume and output.exists():
        run.stamp.check(run.stamp_path, output)
        for row in read_rows(output) if share.first else ():
            on_row(row, False)
        return
    parts = []

    def score(one: Reward, numbers: Sequence[int]) -> list[Row]:
        name = "student" if one is reward.student else "teacher"
        parts.append(output.with_name(f"{output.name}.{name}.jsonl"))
        chosen = [bare(sources[number]) for number in numbers]
        texts = None if prompts is None else [prompts[number] for number in numbers]
        score_to_file(one, chosen, parts[-1], settings, prompts=texts, resume=resume, **how)
        share.wait()
        return read_rows(parts[-1])

    rows = cascade_rows(reward, len(sources), score, groups)
    share.wait()
    if not share.first:
        return
    with run.songs.locked():
        run.songs.start()
        for number, row in enumerate(rows):
            row = run.further.joined(number, row)
            run.songs.append([row])
            on_row(row, True)
        run.stamp.write(run.stamp_path)
        run.songs.finish()
    for part in parts:
        part.unlink()
        provenance_path(part).unlink(missing_ok=True)


class _Run:
    """One scoring run into one file."""

    def __init__(
        self,
        reward: Reward,
        sources: Sequence[str | Input],
        output: Path,
        settings: ScoreSettings,
        prompts: Prompts,
        workers: int,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.settings = settings
        paths = paths_of(sources)
        check_output(output, paths)
        about = provenance(reward)
        names = result_columns(reward, settings)
        self.further = Further(sources, names)
        self.songs = GrowingTable(output, song_schema(names, self.further.schema, about))
        self.parts = GrowingTable(segments_path(output), segment_schema(reward, about))
        texts = [[prompt, getattr(prompt, "lyrics", None)] for prompt in prompts or ()]
        names_of_songs = [source.name for source in sources if isinstance(source, Input)]
        values = {
            "inputs": text_hash([paths, names_of_songs, self.further.rows]),
            "prompts": text_hash(texts),
            "settings": vars(settings),
            **({} if groups is None else {"groups": text_hash(groups)}),
        }
        self.stamp = Stamp({**about, **values}, paths)
        self.stamp_path = provenance_path(output)
        self.growing = output.with_name(output.name + ".partial.json")
        batches = [encoder.batch_segments for encoder in reward.parts.encoders]
        # Models without batches give a song the same bits wherever a run begins.
        self.block = block_songs(reward.batch_segments or max(batches)) if batches else 1
        self.kept: list[Row] = []
        self.blocks = Blocks(
            reward, sources, prompts, settings, output.with_name(output.name + ".partial.blocks"),
            self.block if batches else BLOCK_SONGS, self.block, workers,
        )  # fmt: skip

    def finished(self) -> list[Row]:
        """The rows of the finished file; finishes what a kill in the very last steps left."""
        if self.settings.segments:
            self.parts.finish()
        self._clear()
        return read_rows(self.songs.path)

    def start(self, resume: bool, several: bool) -> int:
        """Begin behind the rows that a former run left in order; their number."""
        songs = len(self.blocks.sources)
        if resume and ((rows := self.songs.written()) or self.blocks.begun):
            self.stamp.check(self.growing, self.songs.partial)
            step = self.blocks.size if several or self.blocks.begun else self.block
            self.kept = self._whole(rows)
            if len(self.kept) < songs:
                self.kept = self.kept[: len(self.kept) // step * step]
        else:
            self.blocks.clear()
        self.songs.start(keep=len(self.kept))
        if self.settings.segments:
            self.parts.start(keep=sum(row["segments"] for row in self.kept))
        # Only now: a stamp must never stand beside rows of another run.
        self.stamp.write(self.growing)
        return len(self.kept)

    def fresh(self, start: int, engine: Engine) -> Iterator[Row]:
        """The rows that are not there yet, each written as it comes."""
        in_files = engine.several or self.blocks.begun
        rows = self.blocks.rows(engine, start) if in_files else self.blocks.stream(start)
        for number, row in enumerate(rows, start):
            # Segments first: the row of a song means that its segments are written.
            if self.settings.segments:
                self.parts.append(row.pop("segment_rows"))
            row = self.further.joined(number, row)
            self.songs.append([row])
            yield row

    def finish(self) -> None:
        """Give the files their names, the songs first.

        While the partial file of the songs is there, a resume finishes again; behind it only the
        segments are left to rename.
        """
        self.stamp.write(self.stamp_path)
        self.songs.finish()
        if self.settings.segments:
            self.parts.finish()
        self._clear()

    def _clear(self) -> None:
        self.growing.unlink(missing_ok=True)
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


def song_schema(names: Sequence[str], further: pa.Schema, about: dict[str, Any]) -> pa.Schema:
    """Columns and types of a result file; the metadata holds what made it."""
    kinds = {
        "path": pa.string(), "sample_rate": pa.int64(), "segments": pa.int64(),
        "flags": pa.list_(pa.string()), "error": pa.string(), JUDGED_BY: pa.string(),
    }  # fmt: skip
    columns = [(name, kinds.get(name, pa.float64())) for name in names]
    return pa.schema([*further, *columns], metadata=_metadata(about))


def segment_schema(reward: Reward, about: dict[str, Any]) -> pa.Schema:
    """Columns and types of the file with a row per segment."""
    numbers = ["start", "end", *row_columns(reward, rewarded=False)]
    columns = [("path", pa.string()), ("segment", pa.int64())]
    return pa.schema(
        [*columns, *((name, pa.float64()) for name in numbers)], metadata=_metadata(about)
    )


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    return {f"apex_reward.{name}": json.dumps(value) for name, value in about.items()}
