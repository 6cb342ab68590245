"""This build beside an earlier one: commands in turns, each in processes of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent.parent


class Run(NamedTuple):
    """Processor seconds and the peak in KiB, with its children's; the figures that it printed."""

    seconds: float
    peak: float
    printed: list[float]


def builds(former: Path | None) -> dict[str, Path]:
    """The folders of the builds by their names."""
    return {"this build": HERE} | ({"former build": former.resolve()} if former else {})


def in_turns(
    commands: Sequence[tuple[Path, Sequence[str]]], repeats: int
) -> list[tuple[Run, list[Run]]]:
    """The least of every figure of each command, and all of its runs but the first.

    Args:
        commands: the folder of a build, and what Python runs.
        repeats: runs that count; one more fills the caches, of files and of compiled modules.
    """
    runs: list[list[Run]] = [[] for _ in commands]
    with tempfile.TemporaryDirectory() as compiled:
        for _ in range(repeats + 1):
            for found, (folder, arguments) in zip(runs, commands, strict=True):
                found.append(_run(folder, arguments, compiled))
    return [(_least(found[1:]), found[1:]) for found in runs]


def _run(folder: Path, arguments: Sequence[str], compiled: str) -> Run:
    ours = {"PYTHONPATH": str(folder), "PYTHONPYCACHEPREFIX": compiled, "OMP_NUM_THREADS": "1"}
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=kept | ours, stdout=said, stderr=wrong, cwd=compiled
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        wrong.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments)[-80:]} of {folder} failed: {wrong.read()}")
        words = said.read().split()
    numbers = [float(word) for word in words if re.fullmatch(r"-?\d+(\.\d+)?", word)]
    return Run(usage.ru_utime + usage.ru_stime, usage.ru_maxrss, numbers)


def _least(runs: Sequence[Run]) -> Run:
    printed = [min(figures) for figures in zip(*(run.printed for run in runs), strict=False)]
    return Run(min(run.seconds for run in runs), min(run.peak for run in runs), printed)
