"""The reward server under load: requests a second and waiting times, a soak, a killed replica.

    python benchmarks/serving.py [--clients 1,8,32 --requests 48 --soak 10000 --output FILE]

Every way serves the same model, songs and thread count in a process of its own, in turns:

    dynamic         apex-reward's application: songs of many requests share encoder batches
    one by one      the same application with batches of one segment
    plain           a FastAPI handler that scores one song a call

The soak sends good and hostile requests (bad JSON, no audio, a wrong token, cut connections) to a
server of a small model with random weights. The killed replica is one of two on Ray Serve.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
import uvicorn
from fastapi import FastAPI, Request
from result_file import write_result

from apex_reward import ApexReward, Reward
from apex_reward.audio import load_audio, save_wav
from apex_reward.model.config import ApexConfig
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.foreign.remote import RemoteReward
from apex_reward.serve.app import make_app
from apex_reward.serve.batching import BatchLimits
from apex_reward.serve.settings import ServeSettings

RATE = 24_000
WAYS = ("dynamic", "one by one", "plain")
SONGS = 8
TOKEN = {"Authorization": "Bearer secret"}


def main() -> None:
    """Measure all, print and write the tables."""
    args = parsed()
    if args.serve:
        serve(args.serve, args.port, args.model)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        songs = write_songs(folder / "long", args.seconds)
        short = write_songs(folder, 1.0)
        write_small_model(folder)
        parts: list[str] = []
        for part in (waits, soak, killed_replica):
            parts.append(part(args, folder, songs if part is waits else short))
            write_result("Serving", "\n\n".join(parts), args.output)


def write_songs(folder: Path, seconds: float) -> list[bytes]:
    """Files of noise."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for n in range(SONGS):
        noise = 0.1 * rng.standard_normal((1, int(seconds * RATE))).astype(np.float32)
        save_wav(folder / f"{n}.wav", noise, RATE)
    return [(folder / f"{n}.wav").read_bytes() for n in range(SONGS)]


def write_small_model(folder: Path) -> None:
    """A small model with random weights, its reward, and a token."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    more = {"intermediate_size": 64, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16}
    encoder = {**sizes, **more, "num_conv_pos_embedding_groups": 4}
    config = ApexConfig(encoder=encoder, encoder_name=None, layers=(1, 2, 3, 4),
                        segment_seconds=1.0)  # fmt: skip
    ApexReward(config).save_pretrained(folder / "model")
    (folder / "reward.yaml").write_text("models: model\nmix: aesthetics\n")
    (folder / "token").write_text("secret")


def serve(way: str, port: int, model: str) -> None:
    """One way, in this process."""
    reward = Reward(model, "aesthetics")
    if way == "plain":
        app = plain_app(reward)
    else:
        segments = BatchLimits.segments if way == "dynamic" else 1
        app = make_app(reward, ServeSettings(BatchLimits(segments=segments)))
    uvicorn.run(app, port=port, log_level="warning")


def plain_app(reward: Reward) -> FastAPI:
    """What one writes first: a handler that scores a song a call."""
    app, lock = FastAPI(), threading.Lock()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/score")
    async def score(request: Request) -> dict[str, Any]:
        async with request.form() as form:
            data = await form["audio"].read()  # type: ignore[union-attr]
        return await asyncio.to_thread(judge_one, data)

    def judge_one(data: bytes) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with lock:
                return {"rows": reward.judge([file.name])}

    return app


@contextmanager
def running(command: list[str], folder: Path | None = None) -> Iterator[tuple[int, str]]:
    """A server's process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, *command, "--port", str(port)], cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield process.pid, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)


def waits(args: argparse.Namespace, folder: Path, songs: list[bytes]) -> str:
    """Requests a second and waiting times of every way at every number of clients."""
    found: dict[tuple[int, str], list[float]] = {}
    spent: dict[tuple[int, str], float] = {}
    largest = ""
    for turn in range(args.turns):
        for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
            with running([__file__, "--serve", way, "--model", args.model]) as (_, url):
                load(url, songs, 1, 2)  # warm up
                for clients in args.clients:
                    started = time.perf_counter()
                    times = load(url, songs, clients, args.requests)
                    key = clients, way
                    spent[key] = spent.get(key, 0) + time.perf_counter() - started
                    found.setdefault(key, []).extend(times)
                if way == "dynamic":
                    metrics = httpx.get(f"{url}/metrics").text.splitlines()
                    largest = next(line.split()[1] for line in metrics if "batch_size_max" in line)
    rows = []
    for clients, way in sorted(found, key=lambda key: (key[0], WAYS.index(key[1]))):
        times = found[clients, way]
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        rate = len(times) / spent[clients, way]
        against = rate / (len(found[clients, "plain"]) / spent[clients, "plain"])
        rows.append([clients, way, f"{rate:.2f}", f"{against:.2f}",
                     *(f"{cuts[p - 1]:.2f}" for p in (50, 95, 99))])  # fmt: skip
    table = markdown_table(
        ["clients", "way", "requests/s", "against plain", "p50 s", "p95 s", "p99 s"], rows
    )
    return (
        f"{args.model}, songs of {args.seconds:g} s, one a request, {args.turns} turns of "
        f"{args.requests} requests; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} "
        f"cores; largest batch {largest} songs.\n\n{table}"
    )


def load(url: str, songs: list[bytes], clients: int, requests: int) -> list[float]:
    """Seconds that every request took."""

    def ask(number: int) -> float:
        started = time.perf_counter()
        song = ("song.wav", songs[number % SONGS])
        answer = client.post(f"{url}/score", files=[("audio", song)])
        (row,) = answer.json()["rows"]
        assert row["error"] is None
        return time.perf_counter() - started

    with httpx.Client(timeout=600, limits=httpx.Limits(max_connections=clients)) as client, (
        ThreadPoolExecutor(clients)
    ) as pool:  # fmt: skip
        return list(pool.map(ask, range(requests)))


def soak(args: argparse.Namespace, folder: Path, songs: list[bytes]) -> str:
    """Memory and file handles of the server over many requests, one in four of them hostile."""
    command = ["-m", "apex_reward", "serve", "--reward", "reward.yaml", "--token-file", "token"]
    command += ["--audio-root", ".", "--workers", "1"]
    data = base64.b64encode(songs[0]).decode()
    good: list[Any] = [{"songs": [{"path": f"{n}.wav"}]} for n in range(SONGS)]
    good.append({"songs": [{"audio": data}]})
    kinds: list[dict[str, Any]] = [
        *({"json": body} for body in good),
        {"content": b"{no json"},
        {"json": {"songs": [{"audio": "AAAA"}]}},
        {"json": good[0], "headers": {}},
    ]
    codes: dict[int, int] = {}
    rows: list[list[Any]] = []
    with running(command, folder) as (pid, url):

        def ask(number: int) -> None:
            request = {"headers": TOKEN, **kinds[number % len(kinds)]}
            if number % 50 == 49:
                cut(url)
            code = client.post(f"{url}/score", **request).status_code
            codes[code] = codes.get(code, 0) + 1

        done = 0
        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(8) as pool:
            for until in (args.soak // 10, args.soak // 2, args.soak):
                list(pool.map(ask, range(done, until)))
                done = until
                rows.append([done, *held(pid)])
    table = markdown_table(["requests", "MB of memory", "file handles"], rows)
    return (
        f"Soak: 8 clients, a small model, answers {dict(sorted(codes.items()))}; memory and "
        f"handles of the server and its decoder.\n\n{table}"
    )


def cut(url: str) -> None:
    """Half a request, and the connection is gone."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(b"POST /score HTTP/1.1\r\nAuthorization: Bearer secret\r\n"
                     b"Content-Length: 100\r\n\r\n{")  # fmt: skip


def held(pid: int) -> tuple[str, int]:
    """Megabytes and file handles of a process and its children."""
    server = psutil.Process(pid)
    everyone = [server, *server.children(recursive=True)]
    memory = sum(process.memory_info().rss for process in everyone)
    return f"{memory / 2**20:.0f}", sum(process.num_fds() for process in everyone)


def killed_replica(args: argparse.Namespace, folder: Path, songs: list[bytes]) -> str:
    """What clients see when one of two replicas is killed under load."""
    paths = [folder / f"{n}.wav" for n in range(SONGS)]
    waves = [torch.from_numpy(load_audio(path).samples) for path in paths]
    rows = Reward.load(folder / "reward.yaml").judge([str(path) for path in paths])
    ends: list[float] = []
    wrong = [0]
    stop = threading.Event()
    command = ["-m", "apex_reward", "serve", "--reward", "reward.yaml", "--replicas", "2"]
    with running([*command, "--workers", "1"], folder) as (pid, url):

        def client() -> None:
            remote = RemoteReward(url)
            for n in itertools.cycle(range(SONGS)):
                if stop.is_set():
                    return
                value = float(remote(waves[n], RATE).musicality)
                wrong[0] += abs(value - rows[n]["musicality"]) > 1e-4
                ends.append(time.perf_counter())

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client) for _ in range(4)]
            while len(ends) < 40 and not any(future.done() for future in clients):
                time.sleep(0.05)
            below = psutil.Process(pid).children(recursive=True)
            replica = next(p for p in below if "ServeReplica" in " ".join(p.cmdline()))
            killed_at = time.perf_counter()
            replica.kill()
            time.sleep(10)
            stop.set()
            errors = [future.exception() for future in clients]
    after = [end for end in ends if end >= killed_at]
    gap = max(b - a for a, b in itertools.pairwise([killed_at, *after]))
    failed = sum(error is not None for error in errors)
    return (
        f"Killed replica: one of two, SIGKILL under 4 clients; {len(after)} answers in the next "
        f"10 s, {wrong[0]} wrong, {failed} clients failed after their retries, the longest time "
        f"without an answer {gap:.2f} s."
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="apex-tiny")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")],
                        default=[1, 8, 32])  # fmt: skip
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--soak", type=int, default=10_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", choices=WAYS, help="Be a server (for the benchmark itself).")
    parser.add_argument("--port", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
