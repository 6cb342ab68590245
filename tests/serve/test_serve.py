"""A real server: the numbers of `Reward.judge`, many clients, hostile requests, a clean stop."""

from __future__ import annotations

import base64
import json
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from apex_reward import ApexRewardFunction, Reward, RewardMix, load_reward_model
from apex_reward.audio import load_audio
from apex_reward.cli import app
from apex_reward.errors import AudioError, UsageError
from apex_reward.files.tables import read_jsonl
from apex_reward.rewards.foreign.remote import RemoteReward, ServerError
from apex_reward.scores.apex import HEADS
from apex_reward.scoring.engines import Share
from tests.ranks import launched
from tests.serve.running import start
from tests.support import tiny_model, write_wav

TOKEN = "secret"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    for n in range(6):
        write_wav(folder / "songs" / f"{n}.wav", 0.4 + 0.1 * n, 24_000, seed=n)
    (folder / "songs" / "text.wav").write_text("no audio")
    (folder / "secret.wav").write_bytes((folder / "songs" / "0.wav").read_bytes())
    (folder / "token").write_text(TOKEN + "\n")
    tiny_model().save_pretrained(folder / "model")
    reward = Reward(str(folder / "model"), "aesthetics", loudness=-20.0, guards="penalty")
    reward.save(folder / "reward.yaml")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    process, url = start(folder, "--token-file", "token", "--max-seconds", "20", "--max-songs", "8")
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def judged(folder: Path) -> list[dict[str, Any]]:
    reward = Reward.load(folder / "reward.yaml")
    return reward.judge([str(folder / "songs" / f"{n}.wav") for n in range(6)])


def post(url: str, **request: Any) -> httpx.Response:
    return httpx.post(f"{url}/score", headers=HEADERS, timeout=300, **request)


def figures_of(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", headers=HEADERS).text.splitlines()
    pairs = (line.removeprefix("apex_reward_").split() for line in lines)
    return {name: float(value) for name, value in pairs}


@pytest.mark.slow
def test_files_base64_and_paths_give_the_numbers_of_judge(
    server: str, folder: Path, judged: list[dict[str, Any]]
) -> None:
    data = [(folder / "songs" / f"{n}.wav").read_bytes() for n in range(6)]
    forms = [
        post(server, files=[("audio", (f"{n}.wav", d)) for n, d in enumerate(data)]),
        post(server, json={"songs": [{"audio": base64.b64encode(d).decode()} for d in data]}),
        post(server, json={"songs": [{"path": f"{n}.wav"} for n in range(6)]}),
    ]
    for answer in forms:
        assert answer.status_code == 200, answer.text
        rows = answer.json()["rows"]
        for row, expected in zip(rows, judged, strict=True):
            assert list(row) == list(expected)
            for name, value in expected.items():
                if isinstance(value, float):
                    assert row[name] == pytest.approx(value, abs=1e-5, rel=1e-6), name
            assert row["flags"] == expected["flags"]


def ask_all(url: str, output: Path, clients: int) -> None:
    """Clients of every form at once get the numbers of `score --reward`."""
    songs = [f"songs/{n}.wav" for n in range(6)]
    command = ["score", *songs, "--reward", "reward.yaml", "--output", str(output)]
    assert CliRunner().invoke(app, command).exit_code == 0
    scored = read_jsonl(output)
    data = [Path(song).read_bytes() for song in songs]
    forms: list[Callable[[int], dict[str, Any]]] = [
        lambda n: {"files": [("audio", (f"{n}.wav", data[n]))]},
        lambda n: {"json": {"songs": [{"audio": base64.b64encode(data[n]).decode()}]}},
        lambda n: {"json": {"songs": [{"path": f"{n}.wav"}]}},
    ]
    together = threading.Barrier(clients)

    def ask(client: int) -> dict[str, Any]:
        together.wait()
        (row,) = post(url, **forms[client // 6 % 3](client % 6)).json()["rows"]
        return dict(row)

    with ThreadPoolExecutor(clients) as pool:
        rows = list(pool.map(ask, range(clients)))
    for client, row in enumerate(rows):
        expected = scored[client % 6]
        for name in (*HEADS, "duration", "reward_raw", "reward"):
            assert row[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-6), name
        assert row["flags"] == expected["flags"]


def test_32_clients_at_once_get_the_numbers_of_score(
    server: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ask_all(server, tmp_path / "s.jsonl", 32)
    figures = figures_of(server)
    assert figures["batch_size_max"] > 1
    assert figures["songs_total"] >= 32


@pytest.mark.slow
def test_apex_tiny_answers_as_score_alone_and_with_32_clients(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "songs").symlink_to(folder / "songs")
    Reward("apex-tiny", "aesthetics", loudness=-18.0, guards="penalty").save(
        tmp_path / "reward.yaml"
    )
    monkeypatch.chdir(tmp_path)
    process, url = start(tmp_path)
    try:
        ask_all(url, tmp_path / "s.jsonl", 1)
        assert figures_of(url)["batch_size_max"] == 1
        ask_all(url, tmp_path / "s.jsonl", 32)
        assert figures_of(url)["batch_size_max"] > 1
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def test_grpo_s_rewards_through_the_server_in_two_processes(
    server: str, folder: Path, tmp_path: Path
) -> None:
    waves = [load_audio(folder / "songs" / f"{n}.wav").mono for n in range(6)]
    prompts = ["a", "a", "b", "b", "a", "b"]

    def decode(completion_ids: list[list[int]]) -> list[torch.Tensor]:
        return [torch.from_numpy(waves[ids[0]]) for ids in completion_ids]

    def rewards(reward: Reward, part: slice) -> list[Any]:
        mix = RewardMix.parse("clarity=1,musicality=0.5", "group")
        judge = Reward(reward.model, mix, loudness=reward.loudness)
        function = ApexRewardFunction(judge, decode=decode, sample_rate=24_000)
        ids = [[n] for n in range(6)][part]
        return list(function(prompts[part], [""] * len(ids), completion_ids=ids))

    def work(share: Share) -> None:
        part = slice(0, 2) if share.first else slice(2, 6)
        remote = Reward(RemoteReward(server, token=TOKEN))
        (tmp_path / str(share.rank)).write_text(json.dumps(rewards(remote, part)))

    inside = Reward.load(folder / "reward.yaml")
    assert launched(2, work) == [0, 0]
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert [*found[0], *found[1]] == pytest.approx(rewards(inside, slice(0, 6)), abs=1e-4)


def test_a_bad_song_is_a_row_and_a_bad_request_a_sentence(server: str, folder: Path) -> None:
    rows = post(server, json={"songs": [{"path": "text.wav"}, {"path": "0.wav"},
                                        {"path": "none.wav"}]}).json()["rows"]  # fmt: skip
    assert "is not audio" in rows[0]["error"]
    assert rows[1]["error"] is None
    assert "does not exist" in rows[2]["error"]
    long = write_wav(folder / "songs" / "long.wav", 25.0, 8_000)
    (row,) = post(server, json={"songs": [{"path": long.name}]}).json()["rows"]
    assert "longer than 20 s" in row["error"]
    refused = [
        (403, {"json": {"songs": [{"path": "../secret.wav"}]}}),
        (403, {"json": {"songs": [{"path": str(folder / "secret.wav")}]}}),
        (413, {"json": {"songs": [{"path": "0.wav"}] * 9}}),
        (422, {"json": {"songs": []}}),
        (422, {"json": {"songs": [{"audio": "aaaa", "path": "0.wav"}]}}),
        (422, {"json": {"songs": [{}]}}),
        (422, {"content": b"{no json", "headers": {**HEADERS, "content-type": "application/json"}}),
        (422, {"files": [("other", b"x")]}),
    ]
    for code, request in refused:
        given = {"headers": HEADERS, **request}
        answer = httpx.post(f"{server}/score", timeout=30, **given)
        assert answer.status_code == code, answer.text
        assert answer.json()["error"]
    assert httpx.post(f"{server}/score", json={"songs": [{"path": "0.wav"}]}).status_code == 401
    rng = np.random.default_rng(0)
    for size in (0, 1, 10, 1000):
        junk = base64.b64encode(rng.bytes(size)).decode()
        (row,) = post(server, json={"songs": [{"audio": junk}]}).json()["rows"]
        assert row["error"]
    assert post(server, json={"songs": [{"path": "1.wav"}]}).json()["rows"][0]["error"] is None


def test_the_client_is_a_reward_model(server: str, folder: Path, judged: list[Any]) -> None:
    remote = RemoteReward(server, token=TOKEN)
    local = Reward.load(folder / "reward.yaml")
    assert remote.heads == local.heads
    song = torch.from_numpy(load_audio(folder / "songs" / "3.wav").samples)
    reward = Reward(pickle.loads(pickle.dumps(remote)))
    (row,) = reward.judge([song], sample_rate=24_000)
    assert row["reward"] == pytest.approx(judged[3]["reward_raw"], abs=1e-5)
    assert remote(song * 30, 24_000).musicality.item() == pytest.approx(
        judged[3]["musicality"], abs=1e-4
    )
    with pytest.raises(UsageError, match="not differentiable"):
        remote(song.clone().requires_grad_(), 24_000)
    with pytest.raises(AudioError, match="song 0"):
        remote(torch.zeros(1, 30 * 8_000), 8_000)
    with pytest.raises(UsageError, match="401"):
        load_reward_model(server)
    assert load_reward_model(server, token=TOKEN).heads == local.heads


def test_a_client_without_a_server_says_so() -> None:
    with pytest.raises(ServerError, match="gives no answer after 5 tries"):
        RemoteReward("http://127.0.0.1:9", timeout=1)


@pytest.mark.slow
def test_what_was_accepted_is_answered_at_sigterm(folder: Path) -> None:
    process, url = start(folder, "--max-wait", "2")
    body = {"songs": [{"path": f"{n}.wav"} for n in range(6)]}

    def accepted() -> int:
        figures = figures_of(url)
        return int(figures["songs_waiting"] + figures["songs_total"])

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(lambda: httpx.post(f"{url}/score", timeout=60, json=body))
                 for _ in range(8)]  # fmt: skip
        while accepted() < 8 * 6:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        rows = [future.result().json()["rows"] for future in asked]
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert [len(answer) for answer in rows] == [6] * 8
    assert all(row["error"] is None for answer in rows for row in answer)
