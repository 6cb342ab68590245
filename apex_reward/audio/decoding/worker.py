"""Decoding in a process of its own: what crashes there costs one song, not the run.

A worker is a plain child process with two pipes. It imports neither torch nor transformers, needs
no guard in the caller's script, and ends by itself when its parent is gone.

Protocol: the parent writes one JSON line per song; the worker answers with one JSON line and,
behind it, the mono samples as raw float32.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from io import BufferedReader
from typing import IO, BinaryIO

import numpy as np

from apex_reward.audio.decoding.decode import DecodedSong, DecodeSettings, decode_song
from apex_reward.errors import ApexError

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

    def decode(self, path: str) -> DecodedSong:
        """The decoded song; a song that brings down the worker twice is a failed one."""
        reason = ""
        for _ in range(ATTEMPTS):
            if self._closed:
                return DecodedSong.failed("the run was stopped")
            process = self._process or self._start()
            try:
                return self._exchange(process, path)
            except (OSError, EOFError):
                reason = _ending(process)
                self._process = None
        return DecodedSong.failed(f"the decoder crashed on it ({reason})")

    def close(self) -> None:
        """End the worker, also in the middle of a song; `decode` then returns at once."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

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

    def _exchange(self, process: subprocess.Popen[bytes], path: str) -> DecodedSong:
        requests, answers = _pipes(process)
        requests.write(json.dumps({"path": path, **asdict(self._settings)}).encode() + b"\n")
        requests.flush()
        line = answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        head = json.loads(line)
        samples = bytearray(head.pop("bytes"))
        if answers.readinto(samples) != len(samples):
            raise EOFError
        return DecodedSong(np.frombuffer(samples, np.float32), **head)


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


def _answer(request: dict[str, str | float | int], answers: BinaryIO) -> None:
    path = str(request["path"])
    settings = DecodeSettings(float(request["segment_seconds"]), int(request["model_rate"]))
    song = decode_song(path, settings)
    head = {
        "bytes": song.mono.nbytes,
        "sample_rate": song.sample_rate,
        "flags": song.flags,
        "error": song.error,
    }
    answers.write(json.dumps(head).encode() + b"\n")
    answers.write(np.ascontiguousarray(song.mono).data)
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
