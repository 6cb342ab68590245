"""Replicas on Ray Serve: the same numbers, a killed replica, a clean stop, a config file."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.cli import app
from apex_reward.rewards.foreign.remote import RemoteReward
from apex_reward.serve.replicas import replica_app
from apex_reward.serve.settings import ServeSettings
from tests.serve.running import start
from tests.support import tiny_model, write_wav

SONGS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replicas")
    for n in range(SONGS):
        write_wav(folder / "songs" / f"{n}.wav", 0.4 + 0.3 * n, 24_000, seed=n)
    tiny_model().save_pretrained(folder / "model")
    (folder / "reward.yaml").write_text("models: model\nmix: aesthetics\nguards: penalty\n")
    (folder / "token").write_text("secret\n")
    return folder


def test_the_config_is_one_that_serve_takes_and_builds_the_same_application(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    options = ["--replicas", "3", "--write-config", "--port", "9000", "--audio-root", "songs"]
    options += ["--token-file", "token", "--max-songs", "5", "--batch-segments", "2"]
    done = CliRunner().invoke(app, ["serve", "--reward", "reward.yaml", *options])
    assert done.exit_code == 0, done.output
    config = yaml.safe_load(done.stdout)
    (application,) = ServeDeploySchema(**config).applications
    assert config["http_options"] == {"host": "127.0.0.1", "port": 9000}
    assert application.import_path == "apex_reward.serve.replicas:application"
    args = application.args
    assert args["replicas"] == 3
    assert args["reward"]["models"] == str(folder / "model")
    assert "secret" not in done.stdout
    settings = ServeSettings(**args["settings"])
    assert settings.token() == "secret"
    assert settings.audio_root == str(folder / "songs")
    state = replica_app(args).state
    state.batcher.close()
    assert state.batcher.reward.batch_segments == 2
    assert state.batcher.reward.guards.to_dict() == Reward.load("reward.yaml").guards.to_dict()


def replicas_of(server: int) -> list[psutil.Process]:
    """The replicas that a server's process brought up."""
    below = psutil.Process(server).children(recursive=True)
    return [process for process in below if "ServeReplica" in " ".join(process.cmdline())]


@pytest.mark.slow
def test_a_replica_killed_under_load_costs_no_answer(folder: Path) -> None:
    process, url = start(folder, "--replicas", "2", "--workers", "1")
    songs = [load_audio(folder / "songs" / f"{n}.wav").samples for n in range(SONGS)]
    judged = Reward.load(folder / "reward.yaml").judge(
        [str(folder / "songs" / f"{n}.wav") for n in range(SONGS)]
    )
    wrong: list[Any] = []
    answers, stop = [0], threading.Event()

    def client(number: int) -> None:
        remote = RemoteReward(url, timeout=60)
        while not stop.is_set():
            for song, row in zip(songs, judged, strict=True):
                try:
                    value = float(remote(torch.from_numpy(song), 24_000).musicality)
                except Exception as error:
                    wrong.append(error)
                    return
                answers[0] += 1
                if abs(value - row["musicality"]) > 1e-4:
                    wrong.append((value, row))

    clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    try:
        for thread in clients:
            thread.start()
        before = replicas_of(process.pid)
        assert len(before) == 2
        while answers[0] < 20:
            stop.wait(0.05)
        os.kill(before[0].pid, signal.SIGKILL)
        killed_at = answers[0]
        while answers[0] < killed_at + 60 and not wrong:
            stop.wait(0.05)
        stop.set()
        for thread in clients:
            thread.join()
        assert wrong == []
        assert httpx.post(f"{url}/score", content=b"{").status_code == 422
        asked = threading.Thread(target=client, args=(9,))
        stop.clear()
        asked.start()
    finally:
        stop.set()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
    asked.join()
    assert wrong == []
    assert code == 0
