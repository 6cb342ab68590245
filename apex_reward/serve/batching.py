"""Songs of many clients in one encoder batch: bounded queues and one thread that judges.

Shape key: T = samples.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from apex_reward.audio.decoding import DecodedSong
from apex_reward.audio.workers import DecodeProcess
from apex_reward.errors import ApexError, AudioError
from apex_reward.files.songs_inside import NoSong
from apex_reward.prompt import Prompt
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row, song_row
from apex_reward.serve.settings import ServeSettings

# The size of a batch, how many of it failed, and the seconds that its songs waited in all.
OnBatch = Callable[[int, int, float], None]
HIGHEST_RATE = 192_000  # Hz that a song's length in memory is bounded at
WAITING_SECONDS = 3600.0  # of decoded audio that may wait for the encoder


class BusyError(ApexError):
    """The queue is full: try again later."""


@dataclass
class BatchFigures:
    """Counts of the server."""

    songs: int = 0
    failed: int = 0
    batches: int = 0
    largest: int = 0
    waited: float = 0.0
    dropped: int = 0


@dataclass
class _Job:
    path: str
    name: str
    prompt: Prompt
    answer: Future[Row]
    since: float
    song: DecodedSong | None = None
    seconds: float = 0.0


class Batcher:
    """Decodes songs in crash-proof processes and judges those of many requests together.

    `waiting` counts the songs without an answer; `offloaded` is true while the models are off the
    device, and songs are refused then.
    """

    def __init__(
        self, reward: Reward, settings: ServeSettings, on_batch: OnBatch | None = None
    ) -> None:
        self.reward, self.settings, self.figures = reward, settings, BatchFigures()
        self.waiting, self.offloaded = 0, False
        self._changed, self._on_batch = threading.Condition(), on_batch
        self._moving = threading.Lock()
        # Songs that wait for the judge: at most `WAITING_SECONDS` of audio, or one song.
        self._ready: deque[_Job] = deque()
        self._closed = False
        self._local = threading.local()
        self._processes: list[DecodeProcess] = []
        self._decoders = ThreadPoolExecutor(settings.workers, thread_name_prefix="decode")
        self._judge = threading.Thread(target=self._run, name="judge", daemon=True)
        self._judge.start()

    def submit(
        self, songs: Sequence[tuple[str, str]], prompts: Sequence[Prompt]
    ) -> list[Future[Row]]:
        """Take songs on, all or none.

        Args:
            songs: (file, name in its row) each; `NoSong` in place of a file fails.
            prompts: one per song, empty where there is none.

        Raises:
            BusyError: more than the queue holds, or the models are off the device.
        """
        with self._changed:
            if self.offloaded:
                raise BusyError("the models are off the device; POST /onload brings them back")
            if self.waiting + len(songs) > self.settings.max_queue:
                raise BusyError(f"{self.waiting} songs are waiting already")
            self.waiting += len(songs)
        jobs = [
            _Job(path, name, prompt, Future(), time.monotonic())
            for (path, name), prompt in zip(songs, prompts, strict=True)
        ]
        for job in jobs:
            job.answer.add_done_callback(self._leave)
            self._decoders.submit(self._decode, job)
        return [job.answer for job in jobs]

    def offload(self) -> None:
        """Refuse songs, answer what was taken on, and move the models off the device."""
        with self._moving:
            with self._changed:
                self.offloaded = True
                self._changed.wait_for(lambda: not self.waiting)
            self.reward.offload()

    def onload(self) -> None:
        """Move the models back to their device and take songs again."""
        with self._moving:
            self.reward.onload()
            self.offloaded = False

    def close(self) -> None:
        """Answer what was taken on, then stop."""
        self._decoders.shutdown(wait=True)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._judge.join()
        for process in self._processes:
            process.close()

    def abandon(self) -> None:
        """End at once; what waits gets no answer."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.close()

    def _leave(self, answer: Future[Row]) -> None:
        with self._changed:
            self.waiting -= 1
            self.figures.dropped += answer.cancelled()
            self._changed.notify_all()

    def _decode(self, job: _Job) -> None:
        try:
            if isinstance(job.path, NoSong):
                raise AudioError(job.path.reason)
            job.song = self._read(job)
        except Exception as error:  # whatever a decoder throws is that song's failure
            known = "" if isinstance(error, AudioError) else "cannot be decoded: "
            job.song = DecodedSong.failed(job.name, f"{known}{error}")
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    not self._ready
                    or sum(one.seconds for one in self._ready) + job.seconds <= WAITING_SECONDS
                )
            )
            self._ready.append(job)
            self._changed.notify_all()

    def _next(self, until: float | None = None) -> _Job | None:
        """The next song; None when the time is over, or all is answered and no more will come."""
        with self._changed:
            timeout = None if until is None else max(0.0, until - time.monotonic())
            self._changed.wait_for(lambda: self._ready or self._closed, timeout)
            self._changed.notify_all()
            return self._ready.popleft() if self._ready else None

    def _read(self, job: _Job) -> DecodedSong:
        process = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = DecodeProcess(self.reward.parts.decode_settings)
            self._processes.append(process)
        blocks, most = [], self.settings.max_seconds
        for block in process.blocks(job.path):
            blocks.append(block)
            rate = block.sample_rate
            job.seconds = sum(len(one.samples) for one in blocks) / rate
            if job.seconds > most * min(rate, HIGHEST_RATE) / rate:
                raise AudioError(f"is longer than {most:g} s, the most that this server takes")
        return DecodedSong(job.name, lambda: (block for block in blocks))

    def _run(self) -> None:
        window = self.reward.parts.decode_settings.segment_seconds
        while (first := self._next()) is not None:
            batch, until = [first], first.since + self.settings.max_wait
            # A song that no other song follows does not wait.
            while (
                len(batch) < self.waiting
                and sum(max(1, math.ceil(job.seconds / window)) for job in batch)
                < self.settings.segments
                and (job := self._next(until))
            ):
                batch.append(job)
            # From here on they cannot be cancelled.
            batch = [job for job in batch if job.answer.set_running_or_notify_cancel()]
            try:
                rows = self._rows(batch)
            except Exception as error:  # the engine answers for songs: this is a fault of ours
                for job in batch:
                    job.answer.set_exception(error)
                continue
            for job, row in zip(batch, rows, strict=True):
                job.answer.set_result(row)

    def _rows(self, batch: list[_Job]) -> list[Row]:
        if not batch:
            return []
        prompts = [job.prompt for job in batch] if self.reward.model.reads_text else None
        settings = self.reward.engine_settings(block=len(batch))
        songs = [job.song for job in batch]
        results = list(self.reward.results(songs, prompts, settings=settings))
        rows = [song_row(self.reward, result, rewarded=True) for result in results]
        now, figures = time.monotonic(), self.figures
        failed = sum(row["error"] is not None for row in rows)
        waited = sum(now - job.since for job in batch)
        figures.songs += len(rows)
        figures.failed += failed
        figures.batches += 1
        figures.largest = max(figures.largest, len(rows))
        figures.waited += waited
        if self._on_batch is not None:
            self._on_batch(len(rows), failed, waited)
        return rows
