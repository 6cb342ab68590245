"""Peak memory of scoring hours of audio against minutes, through the command as it is run.

    python benchmarks/memory.py [--minutes 5,180] [--output benchmarks/results/memory.md]

Stereo FLAC files are written for it. The peak is the operating system's own of the command's
largest process (one file is decoded in the process that scores it); the command scores with
apex-tiny, loudness and guards.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from result_file import write_result

from apex_reward.report.markdown import markdown_table

RATE = 44_100
COMMAND = (
    "-m", "apex_reward", "score", "--model", "apex-tiny", "--mix", "aesthetics",
    "--loudness", "-18", "--guards", "penalty", "--workers", "1",
)  # fmt: skip


def write_song(path: Path, minutes: int) -> None:
    """Two tones a minute over noise, in stereo."""
    rng, t = np.random.default_rng(0), np.arange(60 * RATE) / RATE
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16", format="FLAC") as file:
        for minute in range(minutes):
            tones = [0.2 * np.sin(2 * np.pi * (pitch + minute) * t) for pitch in (220, 330)]
            noise = 0.02 * rng.standard_normal((len(t), 2))
            file.write((np.stack(tones, 1) + noise).astype(np.float32))


def peak_of(path: Path, output: Path) -> tuple[float, float]:
    """GiB at the peak, and seconds, of scoring one file."""
    started = time.perf_counter()
    command = [sys.executable, *COMMAND, str(path), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 2**20, time.perf_counter() - started


def main() -> None:
    """Write the songs, score each, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", default="5,180", help="lengths of the songs")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    args = parser.parse_args()
    rows, first = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for minutes in map(int, args.minutes.split(",")):
            song = Path(folder) / f"{minutes}.flac"
            write_song(song, minutes)
            size = song.stat().st_size / 2**20
            peak, seconds = peak_of(song, song.with_suffix(".jsonl"))
            song.unlink()
            first = first or peak
            rows.append(
                [f"{minutes} min", f"{size:.0f} MiB", f"{peak:.2f} GiB", f"{peak / first:.2f}x",
                 f"{minutes * 60 / seconds:.0f}x"]
            )  # fmt: skip
    columns = ["song", "file", "peak memory", "against the first", "real time"]
    text = "`apex-reward score`, apex-tiny, loudness, guards, the largest process."
    write_result("Memory", f"{text}\n\n{markdown_table(columns, rows)}", args.output)


if __name__ == "__main__":
    main()
