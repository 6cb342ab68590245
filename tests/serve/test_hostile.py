"""500 hostile requests: each is a 4xx or a row with a reason, and the next good one is answered."""

from __future__ import annotations

import base64
import gc
import gzip
import io
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn

from apex_reward import Reward
from apex_reward.serve.app import make_app
from apex_reward.serve.settings import ServeSettings
from tests.support import tiny_model, write_wav

TOKEN = {"Authorization": "Bearer secret"}
BODY = 1 << 20
JSON = {**TOKEN, "content-type": "application/json"}


class Server:
    """The application under uvicorn in a thread."""

    def __init__(self, folder: Path) -> None:
        (folder / "token").write_text("secret")
        settings = ServeSettings(
            max_seconds=20.0,
            max_songs=4,
            body=BODY,
            body_seconds=2.0,
            token_file=str(folder / "token"),
            audio_root=str(folder / "songs"),
        )
        app = make_app(Reward(tiny_model(), "aesthetics"), settings)
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self.thread = threading.Thread(target=self.uvicorn.run)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)
        self.port = int(self.uvicorn.servers[0].sockets[0].getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(
            timeout=60, verify=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def post(self, path: str = "/score", **request: Any) -> httpx.Response:
        return self.client.post(self.url + path, **{"headers": TOKEN, **request})

    def songs(self, *songs: dict[str, Any]) -> httpx.Response:
        return self.post(json={"songs": songs})

    def hears(self, answer: bytes, *parts: bytes, wait: float = 0.0) -> None:
        """Bytes sent one after the other bring an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as wire:
            for part in parts:
                wire.sendall(part)
                time.sleep(wait)
            assert answer in wire.recv(4096)

    def handles(self) -> int:
        """Open handles of this process, once the server's last connection is gone."""
        until = time.monotonic() + 60
        while self.uvicorn.server_state.connections and time.monotonic() < until:
            time.sleep(0.01)
        assert not self.uvicorn.server_state.connections
        gc.collect()  # what other tests left behind
        return len(os.listdir("/proc/self/fd"))

    def cut(self, *parts: bytes) -> None:
        """Bytes, and the connection is gone."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as wire:
            wire.sendall(b"".join(parts))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    write_wav(folder / "songs" / "good.wav", 0.5)
    (folder / "songs" / "text.mp3").write_text("no audio")
    (folder / "songs" / "loop").symlink_to("loop")
    (folder / "songs" / "out").symlink_to("/etc")
    (folder / "songs" / "folder.wav").mkdir()
    server = Server(folder)
    yield server
    server.client.close()
    server.uvicorn.should_exit = True
    server.thread.join(timeout=30)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def flac(seconds: float, rate: int) -> str:
    """Base64 of silence: long audio in a small file."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for _ in range(int(seconds // 60)):
            file.write(np.zeros(60 * rate, np.int16))
    return encoded(buffer.getvalue())


NINETY_MINUTES = flac(5400, 8_000)
HEAD = (
    b"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
    b"Content-Type: application/json\r\n"
)
RANDOM = np.random.default_rng(0)


def refused(answer: httpx.Response, *codes: int) -> None:
    assert answer.status_code in codes, (answer.status_code, answer.text[:200])
    assert isinstance(answer.json()["error"], str)


def failed(answer: httpx.Response, reason: str) -> None:
    assert answer.status_code == 200, answer.text[:200]
    (row,) = answer.json()["rows"]
    assert reason in row["error"]
    assert row["reward"] is None


def unrewarded(answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text[:200]
    assert answer.json()["rewards"] == [pytest.approx(-0.01)]
    assert answer.json()["errors"][0]


def junk(size: int) -> str:
    return encoded(RANDOM.bytes(size))


def bomb() -> bytes:
    return gzip.compress(b"[" * (8 << 20))


def wav_that_lies() -> str:
    good = io.BytesIO()
    soundfile.write(good, np.zeros(100, np.float32), 8_000, format="WAV")
    data = bytearray(good.getvalue())
    data[24:28] = (0x7FFFFFFF).to_bytes(4, "little")  # two thousand million samples a second
    return encoded(bytes(data))


def kinds(server: Server) -> list[Callable[[], None]]:
    """One hostile request of every kind, with what must come of it."""
    songs, post = server.songs, server.post
    long = HEAD + b"Content-Length: 1000\r\n\r\n"
    return [
        lambda: refused(post(content=b""), 422),
        lambda: refused(post(content=b"", headers=JSON), 422),
        lambda: refused(songs(), 422),
        lambda: refused(songs({}), 422),
        lambda: failed(songs({"audio": ""}), ""),
        lambda: refused(songs(*[{"path": "good.wav"}] * 5), 413),
        lambda: refused(post(content=b"x" * (BODY + 1)), 413),
        lambda: server.hears(b" 413 ", HEAD + b"Content-Length: 999999999999999999\r\n\r\n"),
        lambda: server.hears(b" 400 ", HEAD + b"Content-Length: -1\r\n\r\n"),
        lambda: server.hears(b" 400 ", b"\x16\x03\x01 not http\r\n\r\n"),
        lambda: failed(songs({"audio": junk(1)}), "audio"),
        lambda: failed(songs({"audio": junk(5000)}), "audio"),
        lambda: failed(songs({"audio": encoded(b"RIFF\xff\xff\xff\xffWAVE")}), ""),
        lambda: failed(songs({"audio": wav_that_lies()}), ""),
        lambda: failed(songs({"audio": encoded(b"PK\x03\x04" * 99)}), "audio"),
        lambda: failed(songs({"audio": encoded(bomb()[:50_000])}), "audio"),
        lambda: refused(post(content=bomb(), headers={**JSON, "content-encoding": "gzip"}), 415),
        lambda: refused(post(content=zlib.compress(b"{}"), headers=JSON), 400, 422),
        lambda: failed(songs({"audio": NINETY_MINUTES}), "longer than 20 s"),
        lambda: refused(post(content=b"{no json", headers=JSON), 422),
        lambda: refused(post(content=b"[" * 100_000, headers=JSON), 422),
        lambda: refused(post(content=b'{"songs": "\xff\xfe"}', headers=JSON), 422),
        lambda: refused(post(content=b'{"songs": [{"path": "\\ud800"}]}', headers=JSON), 422),
        lambda: refused(post(json=[1, 2, 3]), 422),
        lambda: refused(songs({"audio": "good.wav", "run": "rm -rf /"}), 422),
        lambda: failed(songs({"audio": "%%%"}), "holds no base64"),
        lambda: failed(songs({"audio": "QUJDR"}), "holds no base64"),
        lambda: failed(songs({"audio": "äöü"}), "holds no base64"),
        lambda: refused(songs({"path": "../token"}), 403),
        lambda: refused(songs({"path": "/etc/passwd"}), 403),
        lambda: refused(songs({"path": "out/passwd"}), 403),
        lambda: refused(songs({"path": "a\0b"}), 403, 422),
        lambda: failed(songs({"path": "x" * 5000}), ""),
        lambda: failed(songs({"path": "text.mp3"}), "audio"),
        lambda: failed(songs({"path": "folder.wav"}), ""),
        lambda: failed(songs({"path": "gone.wav"}), "does not exist"),
        lambda: refused(post(headers={}, json={"songs": [{"path": "good.wav"}]}), 401),
        lambda: server.hears(
            b" 401 ", b"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xe4\r\n\r\n"
        ),
        lambda: refused(post(files=[("other", b"x")]), 422),
        lambda: refused(post(files=[("audio", b"x")] * 40), 400, 413),
        lambda: refused(
            post(content=b"--x", headers={**TOKEN, "content-type": "multipart/form-data"}), 400, 422
        ),
        lambda: refused(post("/openrlhf", json={"query": []}), 422),
        lambda: refused(post("/openrlhf", content=b"[" * 50_000, headers=JSON), 400, 422),
        lambda: unrewarded(post("/openrlhf", json={"query": ["data:,%%"]})),
        lambda: unrewarded(post("/openrlhf", json={"query": ["../token"]})),
        lambda: refused(post("/verl-omni", json={"protocol_version": "9"}), 422),
        lambda: refused(post("/verl-omni", json=_waveform(sample_rate=10**30)), 422),
        lambda: refused(post("/verl-omni", json=_waveform(num_samples=7)), 422),
        lambda: refused(post("/verl-omni", json=_waveform(protocol_version="0")), 422),
        lambda: refused(post("/nothing", content=b"{}"), 404),
        lambda: refused(httpx.get(f"{server.url}/score", headers=TOKEN), 405),
        lambda: refused(post(content=iter([b"{}"])), 411),
        lambda: server.cut(long, b"{"),
        lambda: server.cut(HEAD),
        lambda: server.hears(b" 408 ", long, b"{", wait=0.2),
    ]


def _waveform(**changes: Any) -> dict[str, Any]:
    data = encoded(np.zeros(4, "<f4").tobytes())
    good = {"protocol_version": "1", "waveform_f32_base64": data, "num_samples": 4}
    return {**good, "sample_rate": 8_000, **changes}


def test_500_hostile_requests(server: Server) -> None:
    good = server.songs({"path": "good.wav"}).json()["rows"]
    assert good[0]["error"] is None
    every = kinds(server)
    assert len(every) > 50
    for kind in every:
        kind()  # alone first: a failure names its kind
    assert server.songs({"path": "good.wav"}).json()["rows"] == good
    handles = server.handles()
    stop, wrong = threading.Event(), []

    def honest() -> None:
        while not stop.is_set():
            rows = server.songs({"path": "good.wav"}).json()["rows"]
            if rows != good:
                wrong.append(rows)

    order = [every[number % len(every)] for number in range(500 - len(every))]
    client = threading.Thread(target=honest)
    client.start()
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(kind) for kind in order]:
            future.result()
    stop.set()
    client.join()
    assert wrong == []
    assert server.songs({"path": "good.wav"}).json()["rows"] == good
    # A handle lost to one kind of request is lost with each; others' threads open a few as well.
    assert server.handles() - handles < len(order) // len(every)
    figures = dict(
        line.split() for line in httpx.get(f"{server.url}/metrics", headers=TOKEN).text.splitlines()
    )
    assert figures["apex_reward_songs_waiting"] == "0"
