"""What every script's result file says beside its table: machine, date and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch

from apex_reward.files.tables import write_text

RESULTS = Path(__file__).parent / "results"


def provenance() -> str:
    """The command's script aside, all that a figure depends on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = f"{os.cpu_count()}-core CPU ({_processor()})"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return (
        f"{machine}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"{date.today().isoformat()}, commit {commit or 'unknown'}"
    )


def write_result(title: str, text: str, output: Path | None) -> None:
    """Print a result and, where a file is named, write it there with what it was measured on."""
    whole = f"# {title}\n\n{text}\n\nMeasured on a {provenance()}.\n"
    print(whole)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, whole)


def _processor() -> str:
    found = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (found.read_text().splitlines() if found.exists() else ())
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()
