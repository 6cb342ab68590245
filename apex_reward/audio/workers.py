"""Decoding in a process of its own: what crashes there costs one song, not the run.

A worker is a plain child process with a socket and memory that it shares with its parent. It
imports neither torch nor transformers, needs no guard in the caller's script, and ends by itself
when its parent is gone.

Protocol: the parent sends the path and the settings of a song. The worker puts each piece of
samples into the shared memory and answers with their number, rate, facts (of the last piece) and
channels, or with the reason why the song cannot be decoded. The parent answers when it has copied a
piece; the memory is not overwritten before.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from apex_reward.audio.blocks import SLOT, Block, Blocks, joined, mono_pieces
from apex_reward.audio.flags import DecodeSettings, Samples
from apex_reward.audio.stream import stream_file
from apex_reward.errors import ApexError, AudioError

WORKER_COMMAND = (sys.executable, "-c", "from apex_reward.audio.workers import serve; serve()")
ATTEMPTS = 2


class DecodeProcess:
    """One worker, started when it is first needed and again after a crash."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._slot: Samples
        self._connection: Connection

    def blocks(self, path: str) -> Blocks:
        """The blocks of a song, as `blocks_of` in this process.

        A worker that goes down is started again and goes on behind the samples that came; a song
        that brings it down twice is a failed one. Left before the last block, the worker is ended.
        """
        return joined(self._pieces(path))

    def close(self) -> None:
        """End the worker, also in the middle of a song; `blocks` then ends at once."""
        self._closed = True
        self._end()

    def _pieces(self, path: str) -> Blocks:
        reason, done = "", 0
        for _ in range(ATTEMPTS):
            if self._closed:
                raise AudioError("the run was stopped")
            process = self._process or self._start()
            answered, position = False, 0
            try:
                for piece in self._exchange(path):
                    new = piece.samples[max(0, done - position) :]
                    position += len(piece.samples)
                    done = max(done, position)
                    answered = piece.facts is not None
                    yield replace(piece, samples=new)
                return
            except AudioError:
                answered = True
                raise
            except (OSError, EOFError):
                reason = _ending(process)
            finally:
                if not answered:
                    self._end()
        raise AudioError(f"the decoder crashed on it ({reason})")

    def _exchange(self, path: str) -> Blocks:
        self._connection.send((path, self._settings))
        facts = None
        while facts is None:
            answer = self._connection.recv()
            if isinstance(answer, str):
                raise AudioError(answer)
            samples, rate, facts, channels = answer
            yield Block(self._slot[:samples], rate, facts, channels)
            if facts is None:
                self._connection.send(None)

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        memory = _new_memory()
        self._connection, theirs = Pipe()
        try:
            self._slot = _slot(memory)
            process = self._process = subprocess.Popen(
                [*WORKER_COMMAND, str(memory), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[memory, theirs.fileno()],
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(memory)
            theirs.close()
        try:
            self._connection.recv()
        except EOFError as error:
            if not self._closed:
                raise ApexError(
                    f"a decode worker could not be started ({_ending(process)}); its own message "
                    "stands above. Without workers (workers=0) songs are decoded in this process"
                ) from error
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def serve() -> None:
    """The worker's side: answer requests until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    memory, socket = map(int, sys.argv[-2:])
    slot, parent = _slot(memory), Connection(socket)
    parent.send(None)
    # Decoders write warnings about damaged files straight to the terminal; the row has the reason.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            path, settings = parent.recv()
            try:
                with closing(mono_pieces(partial(stream_file, path), settings, slot)) as pieces:
                    for piece in pieces:
                        facts = piece.facts
                        parent.send((len(piece.samples), piece.sample_rate, facts, piece.channels))
                        if facts is None:
                            parent.recv()
            except AudioError as error:
                parent.send(str(error))


def _new_memory() -> int:
    """A descriptor of memory for the samples of a piece, without a name."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("songs")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, SLOT * 4)
    return memory


def _slot(memory: int) -> Samples:
    return np.frombuffer(mmap.mmap(memory, 0), np.float32)


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a worker ended, for a message."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    process.kill()
    code = process.wait()
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
