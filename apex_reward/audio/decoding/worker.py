"""Decoding in a process of its own: what crashes there costs one song, not the run.

A worker is a plain child process with two pipes. It imports neither torch nor transformers, needs
no guard in the caller's script, and ends by itself when its parent is gone.

Protocol: the parent writes one JSON line per song (`path`, the settings, `skip`: blocks that it
has already). The worker answers every block with one JSON line (`bytes`, `sample_rate`, and in the
last one `facts`) and, behind it, the samples as raw float32; or with a line that has an `error`.
It waits where the parent does not read on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from io import BufferedReader
from itertools import islice
from typing import IO, Any, BinaryIO

import numpy as np

from apex_reward.audio.decoding.decode import DecodeSettings, SongFacts, decoded_blocks
from apex_reward.audio.decoding.hearing import Block
from apex_reward.errors import ApexError, AudioError

WORKER_COMMAND = (
    sys.executable,
    "-c",
    "from apex_reward.audio.decoding.worker import serve; serve()",
)
READY = b"ready\n"
ATTEMPTS = 2


class DecodeProcess:
    """One worker, started when it is first needed and again after a crash."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def blocks(self, path: str) -> Iterator[Block]:
        """The blocks of a song, as `decoded_blocks`.

        A worker that goes down is started again and goes on behind the blocks that came; a song
        that brings it down twice is a failed one. Left before the last block, the worker is ended.
        """
        reason, had = "", 0
        for _ in range(ATTEMPTS):
            if self._closed:
                raise AudioError("the run was stopped")
            process = self._process or self._start()
            answered = False
            try:
                for block in self._exchange(process, path, had):
                    had += 1
                    answered = block.facts is not None
                    yield block
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

    def close(self) -> None:
        """End the worker, also in the middle of a song; `blocks` then ends at once."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        process = subprocess.Popen(
            WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        self._process = process
        if _pipes(process)[1].readline() != READY and not self._closed:
            raise ApexError(
                f"a decode worker could not be started ({_ending(process)}); its own message "
                "stands above. Without workers (workers=0) songs are decoded in this process"
            )
        return process

    def _exchange(self, process: subprocess.Popen[bytes], path: str, skip: int) -> Iterator[Block]:
        requests, answers = _pipes(process)
        request = {"path": path, "skip": skip, **asdict(self._settings)}
        requests.write(json.dumps(request).encode() + b"\n")
        requests.flush()
        facts = None
        while facts is None:
            line = answers.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            head = json.loads(line)
            if "error" in head:
                raise AudioError(head["error"])
            samples = bytearray(head["bytes"])
            if answers.readinto(samples) != len(samples):
                raise EOFError
            facts = SongFacts(**head["facts"]) if head["facts"] else None
            yield Block(np.frombuffer(samples, np.float32), head["sample_rate"], facts)


def serve() -> None:
    """The worker's side: answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    answers = os.fdopen(os.dup(1), "wb")
    # Decoders write warnings about damaged files straight to the terminal; the row has the reason.
    silence = os.open(os.devnull, os.O_WRONLY)
    answers.write(READY)
    answers.flush()
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    for line in sys.stdin.buffer:
        _answer(json.loads(line), answers)


def _answer(request: dict[str, Any], answers: BinaryIO) -> None:
    path, skip = request.pop("path"), request.pop("skip")
    try:
        for block in islice(decoded_blocks(path, DecodeSettings(**request)), skip, None):
            head = {
                "bytes": block.samples.nbytes,
                "sample_rate": block.sample_rate,
                "facts": block.facts and asdict(block.facts),
            }
            answers.write(json.dumps(head).encode() + b"\n")
            answers.write(np.ascontiguousarray(block.samples).data)
            answers.flush()
    except AudioError as error:
        answers.write(json.dumps({"error": str(error)}).encode() + b"\n")
        answers.flush()


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
