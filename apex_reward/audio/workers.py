"""Decoding in a process of its own: what crashes there costs one song, not the run.

A worker is a plain child process with two pipes and memory that it shares with its parent. It
imports neither torch nor transformers, needs no guard in the caller's script, and ends by itself
when its parent is gone.

Protocol: the parent writes one JSON line per song (`path` and the settings). The worker puts each
piece of samples into the next of `SLOTS` slots of the shared memory and answers with one JSON
line (`samples`, `sample_rate`, `channels`, and in the last one `facts`), or with a line that has an
`error`.
The parent sends an empty line when it has copied a piece; no slot is overwritten before.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict, replace
from io import BufferedReader
from typing import IO, Any, BinaryIO

import numpy as np

from apex_reward.audio.blocks import SLOT, Block, Blocks, Samples, joined, mono_pieces
from apex_reward.audio.flags import DecodeSettings, SongFacts
from apex_reward.audio.stream import stream_file
from apex_reward.errors import ApexError, AudioError

WORKER_COMMAND = (sys.executable, "-c", "from apex_reward.audio.workers import serve; serve()")
READY, COPIED = b"ready\n", b"\n"
ATTEMPTS = 2
SLOTS = 2


class DecodeProcess:
    """One worker, started when it is first needed and again after a crash."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._slots: list[Samples] = []
        self._closed = False

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
                for piece in self._exchange(process, path):
                    new = piece.samples[max(0, done - position) :]
                    position += len(piece.samples)
                    done = max(done, position)
                    answered = piece.facts is not None
                    yield replace(piece, samples=new)
                return
            except (AudioError, OSError, EOFError) as error:
                answered = True
                if isinstance(error, AudioError):
                    raise
                reason = _ending(process)
                self._process = None
            finally:
                if not answered:
                    self._end()
        raise AudioError(f"the decoder crashed on it ({reason})")

    def _exchange(self, process: subprocess.Popen[bytes], path: str) -> Blocks:
        requests, answers = _pipes(process)
        request = json.dumps({"path": path, **asdict(self._settings)})
        requests.write(request.encode() + b"\n")
        turn, facts = 0, None
        while facts is None:
            requests.flush()
            line = answers.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            head = json.loads(line)
            if "error" in head:
                raise AudioError(head["error"])
            facts = SongFacts(**head["facts"]) if head["facts"] else None
            samples = self._slots[turn][: head["samples"]]
            yield Block(samples, head["sample_rate"], facts, head["channels"])
            requests.write(COPIED)
            turn = (turn + 1) % SLOTS

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        memory = _new_memory()
        try:
            self._slots = _slots(memory)
            process = subprocess.Popen(
                [*WORKER_COMMAND, str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[memory],
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(memory)
        self._process = process
        if _pipes(process)[1].readline() != READY and not self._closed:
            raise ApexError(
                f"a decode worker could not be started ({_ending(process)}); its own message "
                "stands above. Without workers (workers=0) songs are decoded in this process"
            )
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def serve() -> None:
    """The worker's side: answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    slots = _slots(int(sys.argv[-1]))
    answers = os.fdopen(os.dup(1), "wb")
    # Decoders write warnings about damaged files straight to the terminal; the row has the reason.
    silence = os.open(os.devnull, os.O_WRONLY)
    answers.write(READY)
    answers.flush()
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    for line in sys.stdin.buffer:
        if line != COPIED:  # of the song before
            _answer(json.loads(line), slots, answers)


def _answer(request: dict[str, Any], slots: list[Samples], answers: BinaryIO) -> None:
    path = request.pop("path")
    pieces = mono_pieces(lambda: stream_file(path), DecodeSettings(**request), slots)
    try:
        with closing(pieces):
            for number, piece in enumerate(pieces):
                facts = piece.facts and asdict(piece.facts)
                head = {"samples": len(piece.samples), "sample_rate": piece.sample_rate}
                _send(answers, {**head, "channels": piece.channels, "facts": facts})
                # The next piece overwrites the one before this.
                if facts is None and number >= SLOTS - 1 and not sys.stdin.buffer.readline():
                    return
    except AudioError as error:
        _send(answers, {"error": str(error)})


def _send(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


def _new_memory() -> int:
    """A descriptor of memory for all slots, without a name."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("songs")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, SLOTS * SLOT * 4)
    return memory


def _slots(memory: int) -> list[Samples]:
    return list(np.frombuffer(mmap.mmap(memory, 0), np.float32).reshape(SLOTS, SLOT))


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], BufferedReader]:
    if process.stdin is None or not isinstance(process.stdout, BufferedReader):
        raise ApexError("a decode worker was started without pipes")
    return process.stdin, process.stdout


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a worker ended, for a message."""
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
