"""Decode many songs ahead of the encoder, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

from apex_reward.audio.decoding.decode import DecodedSong, DecodeSettings, decode_song
from apex_reward.audio.decoding.worker import DecodeProcess

# Decoded songs waiting per worker: enough that none is idle while the encoder works.
AHEAD = 2


def decode_songs(
    paths: Sequence[str], settings: DecodeSettings, workers: int = 0
) -> Iterator[DecodedSong]:
    """Yield one DecodedSong per path, in the order of `paths`, for any number of workers.

    Args:
        paths: files to decode.
        settings: segment length and sample rate of the model.
        workers: processes that decode; 0 decodes in this one. At most `AHEAD` decoded songs per
            worker wait in memory.
    """
    workers = min(workers, len(paths))
    if workers == 0:
        for path in paths:
            yield replace(decode_song(path, settings), path=path)
        return
    processes = [DecodeProcess(settings) for _ in range(workers)]
    idle: SimpleQueue[DecodeProcess] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def decode(path: str) -> DecodedSong:
        # There are as many threads as processes, so one is always idle.
        process = idle.get()
        try:
            return replace(process.decode(path), path=path)
        finally:
            idle.put(process)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        waiting: deque[Future[DecodedSong]] = deque()
        try:
            for path in paths:
                waiting.append(threads.submit(decode, path))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for process in processes:
                process.close()
