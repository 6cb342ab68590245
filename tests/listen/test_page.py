"""The pages in headless Chromium, from a dropped song to a fitted preference, by keyboard alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from apex_reward import Reward
from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.files.tables import read_jsonl
from tests.browser import Browser
from tests.support import free_port

TUNES = 10


def folder_of(path: Path) -> Path:
    for number, system in enumerate(("secretone", "secrettwo")):
        (path / system).mkdir(parents=True)
        for tune in range(TUNES):
            tone = np.sin(np.arange(4000) * (0.2 + 0.03 * tune)) * (0.02 + 0.3 * number)
            save_wav(path / system / f"tune{tune}.wav", tone.astype(np.float32), 8000)
    return path


@contextmanager
def served(*options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`apex-reward listen` as a process of its own, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "apex_reward", "listen", *options, "--port", str(port)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(page: Browser, address: str, voter: str) -> None:
    """Open Vote and give a name, with the keyboard."""
    page.open(f"{address}/")
    page.run("part('voter').value = ''")
    for _ in range(10):
        if page.run("document.activeElement.id") == "voter":
            break
        page.key("Tab")
    page.type(voter)
    page.key("Enter")


def vote(page: Browser, key: str) -> str:
    """Hear both songs and vote, with the keyboard; all that the page holds before the vote."""
    page.until("question && !busy")
    ticket, said = page.run("question.ticket"), page.run("part('status').textContent")
    page.key(key)  # too early: nothing happens
    assert page.run("busy") is False
    assert "listen to both first" in said
    for player in range(2):
        page.key(" ")
        page.until(f"heard[{player}] >= question.needed[{player}]")
        page.until(f"players[{player}].ended")
    held = page.run("""document.documentElement.outerHTML + JSON.stringify(question) +
        performance.getEntries().map(entry => entry.name).join()""")
    page.key(key)
    page.until(f"question === null || question.ticket != {json.dumps(ticket)}")
    return held


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_song_ten_votes_a_kill_two_voters_and_a_fitted_preference(tmp_path: Path) -> None:
    folder, votes = folder_of(tmp_path / "songs"), tmp_path / "votes.jsonl"
    options = (str(folder), "--output", str(votes), "--min-seconds", "0.3")
    held = ""
    with Browser(tmp_path) as page:
        with served(*options, "--model", "apex-tiny", "--mix", "musicality=1") as (address, server):
            page.open(f"{address}/try")
            page.upload("#files", folder / "secretone" / "tune0.wav")
            page.run("document.querySelector('#given button').focus()")
            page.key("Enter")
            page.until("part('status').textContent == 'Scored.'", 60)
            shown = page.run("document.querySelector('.tile b').textContent")
            reward = Reward("apex-tiny", mix="musicality=1")
            (row,) = reward.judge([folder / "secretone" / "tune0.wav"])
            assert shown == f"{row['reward']:.3f}"
            page.run("document.querySelector('button.gradient').focus()")
            page.key("Enter")
            page.until("document.querySelectorAll('.strong rect').length == 300", 60)
            assert page.faults() == []
            start(page, address, "ann")
            for number in range(5):
                held += vote(page, "12"[number % 2])
            page.until("question && !busy")
            os.killpg(server.pid, signal.SIGKILL)
            assert len(read_jsonl(votes)) == 5
        with served(*options) as (address, _):
            start(page, address, "ann")
            for number in range(TUNES + 1 - 5):  # one of ten is asked twice
                held += vote(page, "12tb1"[number % 5])
            page.until("part('status').textContent.startsWith('All done')")
            start(page, address, "bob")
            for number in range(4):
                held += vote(page, "21"[number % 2])
            assert page.faults() == []
        assert page.said == []
    assert not any(word in held for word in ("secret", "tune", "musicality", str(tmp_path)))
    rows = read_jsonl(votes)
    first = [row for row in rows if row["voter"] == "ann" and not row["repeat"]]
    assert [len(first), len(rows)] == [TUNES, TUNES + 5]
    assert sum(row["system_a"] == "secretone" for row in first) == TUNES / 2
    run("arena", "score", votes, "--model", "apex-tiny", "--workers", 0, "--output",
        tmp_path / "scored.jsonl")  # fmt: skip
    run("arena", "evaluate", tmp_path / "scored.jsonl", "--output", tmp_path / "agreement",
        "--bootstrap", 50)  # fmt: skip
    metrics = json.loads((tmp_path / "agreement" / "metrics.json").read_text())
    decided = sum(row["preference"] in "AB" for row in rows)
    assert metrics["scores"]["musicality"]["overall"]["n"] == decided
    assert "seconds" not in metrics["scores"]
    assert metrics["voters"]["repeats"]["comparisons"] == 1
    assert metrics["voters"]["between"]["comparisons"] == 4
    run("arena", "calibrate", tmp_path / "scored.jsonl", "--score", "musicality", "--output",
        tmp_path / "fitted", "--bootstrap", 50)  # fmt: skip
    fitted = json.loads((tmp_path / "fitted" / "preference.json").read_text())
    assert list(fitted["weights"]) == ["musicality"]
