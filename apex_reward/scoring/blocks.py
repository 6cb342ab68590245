"""Rows that several processes make: a file per block of songs, put together in input order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from apex_reward.files.tables import json_line, read_jsonl, write_text
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row
from apex_reward.scoring.engines import Engine, Worker
from apex_reward.scoring.stream import ScoreSettings, score_songs


@dataclass(frozen=True)
class BlockFiles:
    """A file of rows for each block of songs, in a folder that every process sees.

    Args:
        folder: of the files.
        songs: all there are.
        size: songs of a block; the last may have fewer.
    """

    folder: Path
    songs: int
    size: int

    def path(self, number: int) -> Path:
        """The file of a block."""
        return self.folder / f"{number:06d}.jsonl"

    def members(self, number: int) -> slice:
        """The songs of a block."""
        return slice(number * self.size, min((number + 1) * self.size, self.songs))

    def after(self, done: int) -> range:
        """The blocks behind the first `done` songs."""
        return range(-(-done // self.size), -(-self.songs // self.size))

    @property
    def begun(self) -> bool:
        """Whether a former run left any."""
        return self.folder.is_dir() and any(self.folder.glob("*.jsonl"))

    def clear(self) -> None:
        """Take them away."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class BlockScorer:
    """What scores blocks into their files; picklable, so that Ray's actors get it.

    Args:
        encoder_block: songs after which batches are encoded, full or not; divides a block's size.
    """

    reward: Reward
    sources: Sequence[str]
    prompts: Any
    settings: ScoreSettings
    files: BlockFiles
    encoder_block: int
    workers: int

    def __call__(self, device: str | None) -> Worker:
        """The worker of one process, its models on the device."""
        if device is not None:
            self.reward.parts.to(device)
        return self._score

    def _score(self, numbers: Sequence[int]) -> Iterator[int]:
        """Score the blocks that have no file yet; the decoders run ahead over their borders."""
        todo = [number for number in numbers if not self.files.path(number).exists()]
        parts = [self.files.members(number) for number in todo]
        sources = [source for part in parts for source in self.sources[part]]
        prompts = None if self.prompts is None else [p for s in parts for p in self.prompts[s]]
        rows = score_songs(
            self.reward,
            sources,
            prompts,
            self.settings,
            workers=self.workers,
            block=self.encoder_block,
        )
        for number, part in zip(todo, parts, strict=True):
            found = list(islice(rows, part.stop - part.start))
            write_text(self.files.path(number), "".join(map(json_line, found)))
            yield len(found)


def rows_of_blocks(engine: Engine, scorer: BlockScorer, blocks: Sequence[int]) -> Iterator[Row]:
    """The rows of blocks in order, as their files appear; none on a process that is not first."""
    files, ahead = scorer.files, list(reversed(blocks if engine.share.first else ()))
    for _ in engine.run(blocks, scorer):
        while ahead and files.path(ahead[-1]).exists():
            yield from read_jsonl(files.path(ahead.pop()))
    while ahead:
        yield from read_jsonl(files.path(ahead.pop()))
