"""The reward server under load: requests a second and waiting times, a soak, a killed replica.

    python benchmarks/serving.py [--clients 1,8,32 --requests 5 --soak 10000 --output FILE]

Every way serves the same model and songs in a process of its own; they are asked in turns:

    dynamic         apex-reward's application: songs of many requests share encoder batches
    one by one      the same application with batches of one segment
    plain           a FastAPI handler that scores one song a call

The soak sends good and hostile requests (bad JSON, no audio, a wrong token, cut connections) to a
server of a small model with random weights.
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
from contextlib import ExitStack, contextmanager
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
from apex_reward.serve.settings import ServeSettings

RATE = 24_000
WAYS = ("dynamic", "one by one", "plain")
SONGS = 8
CLIENTS = 8  # of the replicas
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
        for part in (waits, soak):
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
        segments = ServeSettings.segments if way == "dynamic" else 1
        app = make_app(reward, ServeSettings(segments=segments))
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
    """Requests a second and waiting times of every way and number of clients, in turns."""
    found: dict[tuple[int, str], list[float]] = {}
    spent: dict[tuple[int, str], float] = {}
    with ExitStack() as held:
        urls = {
            way: held.enter_context(running([__file__, "--serve", way, "--model", args.model]))[1]
            for way in WAYS
        }
        for url in urls.values():
            load(url, songs, 1, 2)  # warm up
        for turn, clients in itertools.product(range(args.turns), args.clients):
            for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
                started = time.perf_counter()
                times = load(urls[way], songs, clients, args.requests * max(2, clients))
                key = clients, way
                spent[key] = spent.get(key, 0) + time.perf_counter() - started
                found.setdefault(key, []).extend(times)
        metrics = httpx.get(f"{urls['dynamic']}/metrics").text.splitlines()
        largest = next(line.split()[1] for line in metrics if "batch_size_max" in line)
    rates = {key: len(times) / spent[key] for key, times in found.items()}
    rows = [
        row(clients, way, found[clients, way], rates[clients, way], rates[clients, "plain"])
        for clients, way in sorted(found, key=lambda key: (key[0], WAYS.index(key[1])))
    ]
    more, said = killed_replica(args, folder / "long")
    table = markdown_table(
        ["clients", "way", "requests", "requests/s", "against plain", "p50 s", "p95 s", "p99 s"],
        rows + more,
    )
    return (
        f"{args.model}, songs of {args.seconds:g} s, one a request, {args.turns} turns; load "
        f"average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; largest batch {largest} "
        f"songs. The replicas are two on Ray Serve, asked by the client with its retries.\n\n"
        f"{table}\n\n{said}"
    )


def row(clients: int, way: str, times: list[float], rate: float, plain: float = 0.0) -> list[Any]:
    """A row of the table; `plain` is the rate that it is held against, if any."""
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    against = f"{rate / plain:.2f}" if plain else ""
    return [clients, way, len(times), f"{rate:.2f}", against,
            *(f"{cuts[p - 1]:.2f}" for p in (50, 95, 99))]  # fmt: skip


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


def killed_replica(args: argparse.Namespace, folder: Path) -> tuple[list[list[Any]], str]:
    """Rows of two replicas before and after one is killed under load, and what clients saw."""
    paths = [folder / f"{n}.wav" for n in range(SONGS)]
    waves = [torch.from_numpy(load_audio(path).samples) for path in paths]
    (folder / "reward.yaml").write_text(f"models: {args.model}\nmix: aesthetics\n")
    judged = Reward.load(folder / "reward.yaml").judge([str(path) for path in paths])
    asked: list[tuple[float, float]] = []
    wrong = [0]
    stop = threading.Event()
    command = ["-m", "apex_reward", "serve", "--reward", "reward.yaml", "--replicas", "2"]
    with running([*command, "--workers", "1"], folder) as (pid, url):

        def client() -> None:
            remote = RemoteReward(url)
            for n in itertools.cycle(range(SONGS)):
                if stop.is_set():
                    return
                began = time.perf_counter()
                value = float(remote(waves[n], RATE).musicality)
                wrong[0] += abs(value - judged[n]["musicality"]) > 1e-4
                asked.append((began, time.perf_counter()))

        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(client) for _ in range(CLIENTS)]
            while len(asked) < 2 * CLIENTS and not any(future.done() for future in clients):
                time.sleep(0.05)
            marks = [time.perf_counter()]
            time.sleep(args.watch)
            below = psutil.Process(pid).children(recursive=True)
            replica = next(p for p in below if "ServeReplica" in " ".join(p.cmdline()))
            marks.append(time.perf_counter())
            replica.kill()
            time.sleep(args.watch)
            marks.append(time.perf_counter())
            stop.set()
            errors = [future.exception() for future in clients]
    rows = []
    for way, (begin, end) in zip(("two replicas", "one killed"), itertools.pairwise(marks),
                                 strict=True):  # fmt: skip
        times = [done - began for began, done in asked if begin <= done < end]
        rows.append(row(CLIENTS, way, times, len(times) / (end - begin)))
    ends = sorted(done for _, done in asked if done >= marks[1])
    gap = max(b - a for a, b in itertools.pairwise([marks[1], *ends]))
    failed = sum(error is not None for error in errors)
    return rows, (
        f"Of the answers {wrong[0]} were wrong; after the SIGKILL {failed} clients failed in spite "
        f"of their retries, and the longest time without an answer was {gap:.2f} s."
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="apex-tiny")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")],
                        default=[1, 8, 32])  # fmt: skip
    parser.add_argument("--requests", type=int, default=5, help="Of every client in a turn.")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--watch", type=float, default=20.0,
                        help="Seconds before and after the kill.")  # fmt: skip
    parser.add_argument("--soak", type=int, default=10_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", choices=WAYS, help="Be a server (for the benchmark itself).")
    parser.add_argument("--port", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
