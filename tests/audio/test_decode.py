"""Decoding ahead, in this process or in workers: order, equality, crashes, hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from apex_reward.audio import load_audio
from apex_reward.audio import workers as worker
from apex_reward.audio.blocks import Block
from apex_reward.audio.decoding import AHEAD, DecodeSettings, decode_song, decode_songs
from apex_reward.errors import ApexError
from tests.support import write_wav

SETTINGS = DecodeSettings(segment_seconds=1.0, model_rate=24_000)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("songs")
    paths = [
        write_wav(folder / f"{n}.wav", 0.3 + 0.2 * n, 44_100, seed=n, channels=1 + n % 2)
        for n in range(7)
    ]
    (folder / "bad.wav").write_text("not audio")
    return [*map(str, paths[:3]), str(folder / "bad.wav"), *map(str, paths[3:])]


def test_one_song_is_the_channel_mean_at_its_own_rate(songs: list[str]) -> None:
    song = decode_song(songs[1], SETTINGS)
    np.testing.assert_array_equal(song.mono, load_audio(songs[1]).samples.mean(axis=0))
    assert (song.sample_rate, song.facts.flags, song.error) == (44_100, [], None)


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_workers_give_the_same_songs_in_the_same_order(songs: list[str], workers: int) -> None:
    plain = list(decode_songs(songs, SETTINGS, workers=0))
    for a, b in zip(plain, decode_songs(songs, SETTINGS, workers=workers), strict=True):
        assert a.mono.dtype == b.mono.dtype == np.float32
        np.testing.assert_array_equal(a.mono, b.mono)
        assert (a.sample_rate, a.error) == (b.sample_rate, b.error)
        assert a.error or a.facts == b.facts
    assert [song.error is None for song in plain] == [True] * 3 + [False] + [True] * 4


def test_no_more_than_a_few_songs_wait(songs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = worker.DecodeProcess.blocks

    def blocks(self: worker.DecodeProcess, path: str) -> Iterator[Block]:
        asked.append(path)
        return real(self, path)

    monkeypatch.setattr(worker.DecodeProcess, "blocks", blocks)
    results = decode_songs(songs, SETTINGS, workers=1)
    next(results)
    time.sleep(0.2)
    assert len(asked) <= AHEAD + 1
    results.close()


def test_permission_denied_is_a_reason(songs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", denied)
    song = decode_song(songs[0], SETTINGS)
    assert (song.error, song.mono.size) == ("permission denied", 0)


@pytest.mark.parametrize("error", [MemoryError("too long"), ZeroDivisionError("in the decoder")])
def test_whatever_a_decoder_raises_is_that_songs_failure(
    songs: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(path: str) -> None:
        raise error

    monkeypatch.setattr("apex_reward.audio.decoding.stream_file", broken)
    assert decode_song(songs[0], SETTINGS).error == (
        f"cannot be decoded: {type(error).__name__}: {error}"
    )


def test_workers_import_no_torch() -> None:
    code = "import sys, apex_reward.audio.workers; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout.strip() == b"False"


def use_worker(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Workers that run `before(path)` ahead of each decoding."""
    code = f"""
import os, signal, sys, time
from apex_reward.audio import workers as worker
real = worker.stream_file
def stream_file(path):
    before(path)
    return real(path)
{textwrap.dedent(before)}
worker.stream_file = stream_file
worker.serve()
"""
    monkeypatch.setattr(worker, "WORKER_COMMAND", (sys.executable, "-c", code))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_song_that_kills_its_worker_fails_alone(
    songs: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    use_worker(
        monkeypatch,
        """
        def before(path):
            if path.endswith("2.wav"):
                os.kill(os.getpid(), signal.SIGSEGV)
            if path.endswith("4.wav"):
                os._exit(7)
        """,
    )
    results = list(decode_songs(songs, SETTINGS, workers=workers))
    assert results[2].error == "the decoder crashed on it (signal SIGSEGV)"
    assert results[5].error == "the decoder crashed on it (exit code 7)"
    good = [n for n in range(8) if n not in (2, 3, 5)]
    for n in good:
        np.testing.assert_array_equal(results[n].mono, decode_song(songs[n], SETTINGS).mono)


def test_a_worker_killed_from_outside_costs_no_song(
    songs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = tmp_path / "killed"
    use_worker(
        monkeypatch,
        f"""
        def before(path):
            if path.endswith("2.wav") and not os.path.exists({str(mark)!r}):
                open({str(mark)!r}, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    results = list(decode_songs(songs, SETTINGS, workers=1))
    assert mark.exists()
    assert [song.error is None for song in results] == [True] * 3 + [False] + [True] * 4


def test_stopping_early_ends_a_worker_in_the_middle_of_a_song(
    songs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(
        monkeypatch, "def before(path):\n    time.sleep(0 if path.endswith('0.wav') else 99)"
    )
    results = decode_songs(songs, SETTINGS, workers=2)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 90, "it waited for the worker's song"
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_ends_with_its_parent(tmp_path: Path, songs: list[str]) -> None:
    code = f"""
import os, sys
from apex_reward.audio.decoding import DecodeSettings
from apex_reward.audio.workers import DecodeProcess
process = DecodeProcess(DecodeSettings(1.0, 24_000))
list(process.blocks({songs[0]!r}))
print(process._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    child = int(parent.stdout)
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_a_worker_that_cannot_start_says_so(
    songs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WORKER_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(ApexError, match=r"could not be started \(exit code 3\)"):
        list(decode_songs(songs, SETTINGS, workers=2))


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert decode_song(str(tmp_path / "pipe.wav"), SETTINGS).error == "is not a regular file"
