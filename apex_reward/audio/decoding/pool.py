"""Decode many songs ahead of the encoder, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

from apex_reward.audio.decoding.decode import (
    DecodedSong,
    DecodeSettings,
    decode_song,
)
from apex_reward.audio.decoding.hearing import Block
from apex_reward.audio.decoding.worker import DecodeProcess

# Songs waiting per worker, the first block of each decoded: enough that none is idle while the
# encoder works.
AHEAD = 2


def decode_songs(
    paths: Sequence[str], settings: DecodeSettings, workers: int = 0
) -> Iterator[DecodedSong]:
    """Yield one DecodedSong per path, in the order of `paths`, for any number of workers.

    A song of several blocks keeps its worker until its blocks are read or it is closed. One that
    is left open when the next song is asked for keeps it for good, and another worker is started.

    Args:
        paths: files to decode.
        settings: segment length and sample rate of the model.
        workers: processes that decode; 0 decodes in this one. The first blocks of at most `AHEAD`
            songs per worker wait in memory.
    """
    workers = min(workers, len(paths))
    if workers == 0:
        for path in paths:
            yield decode_song(path, settings)
        return
    lent = _Workers(settings, workers)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        waiting: deque[Future[tuple[DecodedSong, int]]] = deque()
        try:
            for turn, path in enumerate(paths):
                waiting.append(threads.submit(lent.decode, turn, path))
                if len(waiting) > AHEAD * workers:
                    yield from _next(waiting, lent)
            while waiting:
                yield from _next(waiting, lent)
        finally:
            for future in waiting:
                future.cancel()
            lent.close()


def _next(waiting: deque[Future[tuple[DecodedSong, int]]], lent: _Workers) -> Iterator[DecodedSong]:
    song, turn = waiting.popleft().result()
    yield song
    lent.give(turn)


class _Workers:
    """Workers, lent to songs in the order of the songs.

    Out of order, later songs of several blocks could hold all workers while the reader waits for
    an earlier one.
    """

    def __init__(self, settings: DecodeSettings, count: int) -> None:
        self._settings = settings
        self._idle = [DecodeProcess(settings) for _ in range(count)]
        self._lent: dict[int, DecodeProcess] = {}  # by turn
        self._turn = 0
        self._closed = False
        self._changed = threading.Condition()

    def decode(self, turn: int, path: str) -> tuple[DecodedSong, int]:
        """The song with its first block, and its worker, once its turn is there and one is idle."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._turn == turn and self._idle))
            if self._closed:
                return DecodedSong.failed(path, "the run was stopped"), turn
            process = self._idle.pop()
            self._lent[turn] = process
            self._turn += 1
            self._changed.notify_all()
        passes = iter([self._first_pass(turn, process, path)])
        return DecodedSong(path, lambda: next(passes, None) or self._later_pass(path)), turn

    def _first_pass(self, turn: int, process: DecodeProcess, path: str) -> Iterator[Block]:
        try:
            yield from process.blocks(path)
        finally:
            with self._changed:
                if self._lent.pop(turn, None) is not None:
                    self._idle.append(process)
                    self._changed.notify_all()
                else:  # given away, or the run is over
                    process.close()

    def _later_pass(self, path: str) -> Iterator[Block]:
        with closing(DecodeProcess(self._settings)) as process:
            yield from process.blocks(path)

    def give(self, turn: int) -> None:
        """Let a song that is still open keep its worker, and have another in its place."""
        with self._changed:
            if self._lent.pop(turn, None) is not None:
                self._idle.append(DecodeProcess(self._settings))
                self._changed.notify_all()

    def close(self) -> None:
        """End all workers that were not given away."""
        with self._changed:
            self._closed = True
            processes = [*self._idle, *self._lent.values()]
            self._lent.clear()
            self._changed.notify_all()
        for process in processes:
            process.close()
