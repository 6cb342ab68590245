"""A server started as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support import free_port


def start(folder: Path, *options: str, seconds: float = 180) -> tuple[subprocess.Popen[bytes], str]:
    """The command of the README in a folder with `reward.yaml` and `songs/`, on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "apex_reward", "serve", "--reward", "reward.yaml"]
    command += ["--port", str(port), "--audio-root", "songs", *options]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return process, url
        except httpx.TransportError:
            pass
        assert process.poll() is None, "the server ended"
        time.sleep(0.1)
    process.kill()
    raise AssertionError("the server did not start")
