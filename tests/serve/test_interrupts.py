"""Ctrl-C under load: what was accepted is answered, and the server says how it ended."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.cli.forked import start, wait
from tests.support import free_port, tiny_model, write_wav

INTERRUPTS = 4
CLIENTS = 6
SONGS = 5
BODY = {"songs": [{"path": f"{n}.wav"} for n in range(SONGS)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    for n in range(SONGS):
        write_wav(folder / f"{n}.wav", 2.0 + n, 24_000, seed=n)
    tiny_model().save_pretrained(folder / "model")
    return folder


def serving(folder: Path, log: Path) -> tuple[int, str]:
    """A server's process and address; it may not answer yet."""
    port = free_port()
    model = ["--model", str(folder / "model"), "--mix", "aesthetics"]
    words = ["serve", *model, "--port", str(port), "--audio-root", str(folder)]
    return start(words, log), f"http://127.0.0.1:{port}/score"


def ask(url: str, over: threading.Event) -> list[httpx.Response]:
    """Answers of a client that asks again and again."""
    answers = []
    while not over.is_set():
        try:
            answers.append(httpx.post(url, json=BODY, timeout=60))
        except (httpx.NetworkError, httpx.RemoteProtocolError):  # the client is told
            time.sleep(0.02)
    return answers


def wait_for(metrics: str, words: str) -> None:
    """Until the server is up and says so."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if re.search(words, httpx.get(metrics).text):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"no {words} in {metrics}")


@pytest.mark.slow
def test_what_was_accepted_is_answered_at_any_moment(folder: Path, tmp_path: Path) -> None:
    chance, log = random.Random(0), tmp_path / "log"
    answered = 0
    for number in range(INTERRUPTS):
        over = threading.Event()
        child, url = serving(folder, log)
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(ask, url, over) for _ in range(CLIENTS)]
            if number % 4:  # else while it loads
                wait_for(url.replace("score", "metrics"), "songs_total [1-9]")
            time.sleep(chance.uniform(0.0, 1.5))
            os.kill(child, signal.SIGINT)
            code, said = wait(child), log.read_text()
            over.set()
        answers = [answer for client in asked for answer in client.result()]
        assert "Traceback" not in said
        assert all(answer.status_code == 200 for answer in answers)
        rows = [row for answer in answers for row in answer.json()["rows"]]
        assert all(row["error"] is None for row in rows)
        assert code in (0, 130), said
        if code == 0:
            (songs,) = re.findall(r"stopped after (\d+) songs?; every accepted", said)
            assert len(rows) == int(songs)
        elif said:
            assert "interrupted" in said
            assert not rows
        answered += len(rows)
    assert answered


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_counts_what_is_left(folder: Path, tmp_path: Path) -> None:
    log, over = tmp_path / "log", threading.Event()
    child, url = serving(folder, log)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, url, over) for _ in range(CLIENTS)]
        wait_for(url.replace("score", "metrics"), "songs_waiting [1-9]")
        for _ in range(2):
            os.kill(child, signal.SIGINT)
            time.sleep(0.05)
        code, said = wait(child), log.read_text()
        over.set()
    assert all(client.exception() is None for client in asked)
    assert code == 130, said
    assert re.search(r"stopped after \d+ songs?; [1-9]\d* more have no answer", said), said
    assert "Traceback" not in said
