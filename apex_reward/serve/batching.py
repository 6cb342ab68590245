"""Songs of many clients in one encoder batch: a bounded queue and one thread that judges.

Shape key: T = samples.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from apex_reward.audio.decoding.worker import DecodeProcess
from apex_reward.errors import ApexError, AudioError
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row, song_row
from apex_reward.rewards.songs import TensorSong


class BusyError(ApexError):
    """The queue is full: try again later."""


@dataclass(frozen=True)
class BatchLimits:
    """What a server takes on.

    Args:
        songs: songs of one batch at most.
        wait: seconds that a song waits for others at most.
        queue: songs that wait at most; one more is refused.
        seconds: length of a song at most.
        workers: decoding processes.
    """

    songs: int = 32
    wait: float = 0.02
    queue: int = 256
    seconds: float = 600.0
    workers: int = 1


@dataclass
class BatchFigures:
    """What the server counts."""

    songs: int = 0
    failed: int = 0
    batches: int = 0
    largest: int = 0
    waited: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _Job:
    path: str
    name: str
    prompt: Any
    answer: Future[Row]
    since: float
    song: TensorSong | None = None


class Batcher:
    """Decodes songs in crash-proof processes and judges those of many requests together."""

    def __init__(self, reward: Reward, limits: BatchLimits) -> None:
        self.reward, self.limits, self.figures = reward, limits, BatchFigures()
        self._open = threading.BoundedSemaphore(limits.queue)
        self._ready: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._processes: list[DecodeProcess] = []
        self._decoders = ThreadPoolExecutor(limits.workers, thread_name_prefix="decode")
        self._judge = threading.Thread(target=self._run, name="judge", daemon=True)
        self._judge.start()

    def submit(self, songs: Sequence[tuple[str, str]], prompts: Sequence[Any]) -> list[Future[Row]]:
        """Take songs on, all or none.

        Args:
            songs: (file, name in its row) each.
            prompts: one per song; None where there is none.

        Raises:
            BusyError: more than the queue holds.
        """
        for taken in range(len(songs)):
            if not self._open.acquire(blocking=False):
                if taken:
                    self._open.release(taken)
                raise BusyError(f"{self.limits.queue} songs are waiting already")
        jobs = [
            _Job(path, name, prompt, Future(), time.monotonic())
            for (path, name), prompt in zip(songs, prompts, strict=True)
        ]
        for job in jobs:
            job.answer.add_done_callback(lambda _: self._open.release())
            self._decoders.submit(self._decode, job)
        return [job.answer for job in jobs]

    def close(self) -> None:
        """Answer what was taken on, then stop."""
        self._decoders.shutdown(wait=True)
        self._ready.put(None)
        self._judge.join()
        for process in self._processes:
            process.close()

    def _decode(self, job: _Job) -> None:
        try:
            job.song = self._heard(job)
        except AudioError as error:
            job.song = TensorSong.failed(str(error), job.name)
        except Exception as error:  # whatever a decoder throws is that song's failure
            job.song = TensorSong.failed(f"cannot be decoded: {error}", job.name)
        self._ready.put(job)

    def _heard(self, job: _Job) -> TensorSong:
        process = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = DecodeProcess(self.reward.decode_settings)
            self._processes.append(process)
        parts: list[Any] = []
        flags: list[str] = []
        rate, most = 0, self.limits.seconds
        for block in process.blocks(job.path):
            parts.append(block.samples)
            rate = block.sample_rate
            if sum(map(len, parts)) > most * rate:
                raise AudioError(f"is longer than {most:g} s, the most that this server takes")
            flags = block.facts.flags if block.facts is not None else flags
        mono = torch.from_numpy(np.concatenate(parts))
        return TensorSong(mono, rate, job.name, flags)

    def _run(self) -> None:
        while (first := self._ready.get()) is not None:
            batch, last = [first], False
            until = first.since + self.limits.wait
            while len(batch) < self.limits.songs and not last:
                try:
                    job = self._ready.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                last = job is None
                if job is not None:
                    batch.append(job)
            self._answer(batch)
            if last:
                return

    def _answer(self, batch: list[_Job]) -> None:
        songs = [job.song for job in batch]
        reads = self.reward.model.reads_text
        prompts = [job.prompt or "" for job in batch] if reads else None
        settings = self.reward.engine_settings(block=len(batch))
        try:
            results = list(self.reward.results(songs, prompts, settings=settings))
            rows = [song_row(self.reward, result, rewarded=True) for result in results]
        except Exception as error:  # a batch that fails must not end the server
            for job in batch:
                job.answer.set_exception(error)
            return
        self._count(batch, rows)
        for job, row in zip(batch, rows, strict=True):
            job.answer.set_result(row)

    def _count(self, batch: list[_Job], rows: list[Row]) -> None:
        now, figures = time.monotonic(), self.figures
        with figures.lock:
            figures.songs += len(rows)
            figures.failed += sum(row["error"] is not None for row in rows)
            figures.batches += 1
            figures.largest = max(figures.largest, len(rows))
            figures.waited += sum(now - job.since for job in batch)
