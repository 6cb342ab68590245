"""Score files into a result file: grows as results come, and goes on where it was killed."""

from __future__ import annotations

import json
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate, chain, islice, repeat
from pathlib import Path

import pyarrow as pa

from apex_reward.files.growing import GrowingTable
from apex_reward.files.stamps import Stamp, provenance_path, text_hash
from apex_reward.files.tables import (
    check_output,
    json_line,
    read_jsonl,
    read_rows,
    write_text,
)
from apex_reward.model.encode import Prompts
from apex_reward.rewards.cascade import JUDGED_BY
from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row, row_columns
from apex_reward.rewards.saved import provenance
from apex_reward.scoring.engines import Engine, Worker
from apex_reward.scoring.lists import Input, Songs
from apex_reward.scoring.rows import ScoreSettings, cascaded, list_columns, result_columns, rows_of

# Called with a row, and whether this run made it (or a former one left it).
OnRow = Callable[[Row, bool], None]
KINDS = {
    **dict.fromkeys(("path", "error", JUDGED_BY), pa.string()), "flags": pa.list_(pa.string()),
    **dict.fromkeys(("sample_rate", "segments", "segment"), pa.int64()),
}  # fmt: skip
"""Types of the columns that hold no floats."""


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
    settings, output = settings or ScoreSettings(), Path(output)
    if reward.student is not None:
        settings = replace(settings, rewarded=True)
    if settings.rewarded:
        reward.check_single()
    run = _Run(reward, Songs(sources, prompts), output, settings, workers, engine, groups)
    if resume and output.exists() and not run.table.partial.exists():
        run.stamp.check(provenance_path(output), output)
        for row in run.finished() if engine.share.first else ():
            on_row(row, False)
        return
    with ExitStack() as held:

        def begin() -> int:
            held.enter_context(run.table.locked())
            return run.start(resume)

        begun = engine.share.begun(begin)
        for row in run.kept:
            on_row(row, False)
        for row in run.fresh(begun, resume):
            on_row(row, True)
        if engine.share.first:
            run.finish()


class _Run:
    """One scoring run into one file.

    Several processes leave a file per block of songs in `folder`, which all of them see. The run
    is picklable, so that Ray's actors get it: a call gives the worker of a process.
    """

    def __init__(
        self,
        reward: Reward,
        songs: Songs,
        output: Path,
        settings: ScoreSettings,
        workers: int,
        engine: Engine,
        groups: Sequence[str] | None,
    ) -> None:
        self.reward, self.songs, self.output, self.settings = reward, songs, output, settings
        self.count = len(songs.sources)
        self.workers, self.engine, self.groups = workers, engine, groups
        paths = songs.paths
        check_output(output, paths)
        about = provenance(reward)
        metadata = {f"apex_reward.{name}": json.dumps(value) for name, value in about.items()}
        names = result_columns(reward, settings)
        columns = list_columns(songs.sources, names)
        self.columns: list[Row] = columns.to_pylist()
        self.table = GrowingTable(output, schema_of(names, metadata, columns.schema))
        heads = row_columns(reward, rewarded=False)
        names = ["path", "segment", "start", "end", *heads]
        self.parts = GrowingTable(path_beside(output, "segments"), schema_of(names, metadata))
        texts = [[prompt, getattr(prompt, "lyrics", None)] for prompt in songs.prompts or ()]
        values = {
            "inputs": text_hash([paths, songs.names, self.columns]),
            "prompts": text_hash(texts),
            "settings": vars(settings),
            "groups": text_hash(groups or ()),
        }
        self.stamp = Stamp({**about, **values}, paths)
        self.growing = output.with_name(output.name + ".partial.json")
        self.folder = output.with_name(output.name + ".partial.blocks")
        self.cascade = [output.with_name(f"{output.name}.{who}.jsonl")
                        for who in ("student", "teacher")]  # fmt: skip
        batches = [encoder.batch_segments for encoder in reward.parts.encoders]
        # Models without batches give a song the same bits wherever a run begins.
        self.step = block_songs(reward.batch_segments or max(batches)) if batches else 1
        self.size = self.step if batches else BLOCK_SONGS  # songs of a block's file
        self.kept: list[Row] = []

    @property
    def begun(self) -> bool:
        """Whether a former run left files of blocks."""
        return any(self.folder.glob("*.jsonl"))

    def finished(self) -> list[Row]:
        """The rows of the finished file; finishes what a kill in the very last steps left."""
        if self.settings.segments:
            self.parts.finish()
        self._clear()
        return read_rows(self.output)

    def start(self, resume: bool) -> int:
        """Begin behind the rows that a former run left in order; their number."""
        rows = self.table.written() if resume else []
        if rows or (resume and self.begun):
            self.stamp.check(self.growing, self.table.partial)
            if self.settings.segments:  # rows whose segments were written too
                ends = list(accumulate(row["segments"] for row in rows))
                rows = rows[: bisect_right(ends, len(self.parts.written()))]
            if len(rows) < self.count:
                step = self.size if self.engine.several or self.begun else self.step
                rows = rows[: len(rows) // step * step]
            self.kept = rows
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.table.start(keep=len(self.kept))
        if self.settings.segments:
            self.parts.start(keep=sum(row["segments"] for row in self.kept))
        # Only now: a stamp must never stand beside rows of another run.
        self.stamp.write(self.growing)
        return len(self.kept)

    def fresh(self, start: int, resume: bool) -> Iterator[Row]:
        """The rows that are not there yet, each written as it comes; none on a later process."""
        if self.reward.student is not None:
            rows: Iterator[Row] = islice(self._cascade(resume), start, None)
        elif self.engine.several or self.begun:
            rows = self._gathered(start)
        else:
            rows = self._scored(range(start, self.count))
        own = iter(self.columns[start:]) if self.columns else repeat({})
        for row in rows:
            # Segments first: the row of a song means that its segments are written.
            if self.settings.segments:
                self.parts.append(row.pop("segment_rows"))
            row = {**next(own), **row}
            self.table.append([row])
            yield row

    def finish(self) -> None:
        """Give the files their names, the songs first.

        While the partial file of the songs is there, a resume finishes again; behind it only the
        segments are left to rename.
        """
        self.stamp.write(provenance_path(self.output))
        self.table.finish()
        if self.settings.segments:
            self.parts.finish()
        self._clear()

    def _clear(self) -> None:
        self.growing.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        for part in self.cascade:
            part.unlink(missing_ok=True)
            provenance_path(part).unlink(missing_ok=True)

    def _cascade(self, resume: bool) -> Iterator[Row]:
        """The rows of a cascade, from a file of the student and one of the teacher."""

        def score(one: Reward, songs: Songs) -> list[Row]:
            part = self.cascade[one is not self.reward.student]
            score_to_file(one, songs.sources, part, self.settings, prompts=songs.prompts,
                          workers=self.workers, engine=self.engine, resume=resume)  # fmt: skip
            self.engine.share.wait()
            return read_rows(part)

        rows = list(cascaded(self.reward, self.songs, self.settings, self.groups, score))
        self.engine.share.wait()
        yield from rows if self.engine.share.first else ()

    def _scored(self, numbers: Sequence[int]) -> Iterator[Row]:
        """The rows of songs, made in this process; batches are encoded after every `step` songs."""
        songs = self.songs.take(numbers)
        return rows_of(self.reward, songs, self.settings, self.workers, self.step)

    def _gathered(self, done: int) -> Iterator[Row]:
        """The rows behind the first `done`, as the files of their blocks appear."""
        todo = range(-(-done // self.size), -(-self.count // self.size))
        ahead = list(reversed(todo if self.engine.share.first else ()))
        for _ in self.engine.run(todo, self):
            while ahead and self._file(ahead[-1]).exists():
                yield from read_jsonl(self._file(ahead.pop()))
        while ahead:
            yield from read_jsonl(self._file(ahead.pop()))

    def __call__(self, device: str | None) -> Worker:
        """The worker of one process, its models on the device."""
        if device is not None:
            self.reward.parts.to(device)
        return self._work

    def _work(self, numbers: Sequence[int]) -> Iterator[int]:
        """Score the blocks that have no file yet; the decoders run ahead over their borders."""
        todo = [number for number in numbers if not self._file(number).exists()]
        parts = [range(n * self.size, min((n + 1) * self.size, self.count)) for n in todo]
        rows = self._scored(list(chain(*parts)))
        for number, part in zip(todo, parts, strict=True):
            made = list(islice(rows, len(part)))
            write_text(self._file(number), "".join(map(json_line, made)))
            yield len(made)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"


def block_songs(batch_segments: int) -> int:
    """Songs per block: a kill costs at most these; only a block's last batch is not full."""
    return max(BLOCK_SONGS, 4 * batch_segments)


def path_beside(output: Path, rows: str) -> Path:
    """The path of a second file, of `segments` or `groups`.

    >>> path_beside(Path("out/scores.csv"), "segments").name
    'scores.segments.csv'
    """
    return output.with_name(f"{output.stem}.{rows}{output.suffix}")


def schema_of(
    names: Sequence[str], metadata: dict[str, str], further: Sequence[pa.Field] = ()
) -> pa.Schema:
    """Columns and types of a result file, behind further ones; the metadata holds what made it."""
    columns = [(name, KINDS.get(name, pa.float64())) for name in names]
    return pa.schema([*further, *columns], metadata=metadata)
