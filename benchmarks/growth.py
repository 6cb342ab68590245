"""How time and memory grow with the number of rows, each beside its plain way.

    python benchmarks/growth.py [--sizes 1000,10000,100000] [--largest 1000000]
                                [--output benchmarks/results/growth.md]

Listing a folder of N (empty) songs; resuming a `score` run whose N rows are finished; pairs from N
candidates; agreement of N battles with 100 bootstrap rounds; preparing N rows of metadata. The
exponent is the slope of log seconds against log N over the last two sizes; memory is the growth of
the peak per row at the largest size. Pairs and preparing go on to `--largest`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pairs import best_worst_loop, made_up
from result_file import write_result
from sklearn.metrics import roc_auc_score

from apex_reward import Reward
from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.data.metadata import read_metadata
from apex_reward.data.prepare import prepare
from apex_reward.data.settings import PrepareSettings
from apex_reward.pairs.build import build
from apex_reward.pairs.options import PairOptions
from apex_reward.report.markdown import markdown_table
from apex_reward.scoring import find_audio, score_to_file

ROUNDS = 100
Way = Callable[[], Any]
COLUMNS = ("work", "rows", "seconds", "exponent", "KiB a row", "plain way, s", "plain / ours")


def listing(count: int, folder: Path) -> tuple[Way, Way]:
    """A folder of a hundred songs a subfolder, against `os.walk`."""
    for at in range(0, count, 100):
        part = folder / f"{at:07d}"
        part.mkdir(parents=True)
        for n in range(at, min(at + 100, count)):
            (part / f"{n}.wav").touch()

    def walk() -> list[str]:
        return sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)

    return (lambda: find_audio([str(folder)])), walk


def resuming(count: int, folder: Path) -> tuple[Way, Way]:
    """A killed run with all of its rows, against reading the rows."""
    reward, output = Reward("apex-tiny"), folder / "rows.jsonl"
    (folder / "missing").mkdir()
    sources = [str(folder / "missing" / f"{n}.wav") for n in range(count)]
    rows = 0

    def stop(row: dict[str, Any], fresh: bool) -> None:
        nonlocal rows
        rows += 1
        if rows == count:
            raise InterruptedError

    with suppress(InterruptedError):  # missing files: rows without any decoding
        score_to_file(reward, sources, output, on_row=stop)
    # The finished file holds the same lines.

    def read() -> list[Any]:
        return [json.loads(line) for line in output.read_text().splitlines()]

    return (lambda: score_to_file(reward, sources, output, resume=True)), read


def pairing(count: int, folder: Path) -> tuple[Way, Way]:
    """Best against worst of ten candidates a prompt, against a pandas group-by loop."""
    table = made_up(count, count // 10)
    options = PairOptions("best-worst", "musicality")
    frame = table.to_pandas()
    return (lambda: build(table, options)), (lambda: best_worst_loop(frame))


def judging(count: int, folder: Path) -> tuple[Way, Way]:
    """Agreement of one score, against scikit-learn's AUC in every round."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, count))
    won = rng.random(count) < 1 / (1 + np.exp(b - a))
    rows = [
        {"preference": "A" if first else "B", "x_a": float(i), "x_b": float(j)}
        for first, i, j in zip(won, a, b, strict=True)
    ]

    def loop() -> list[float]:
        draws = (rng.integers(0, count, count) for _ in range(ROUNDS))
        return [roc_auc_score(won[draw], (a - b)[draw]) for draw in draws]

    return (lambda: evaluate_battles(battles_of(rows), bootstrap=ROUNDS)), loop


def preparing(count: int, folder: Path) -> tuple[Way, Way]:
    """A table to a manifest, against pandas: read, filter, rank, write."""
    rng = np.random.default_rng(0)
    plays, likes = rng.lognormal(5, 2, (2, count)).astype(int)
    table = {"id": [f"s{n}" for n in range(count)], "plays": plays, "likes": likes}
    path = folder / "songs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(path, index=False)

    def with_pandas() -> None:
        frame = pd.read_csv(path)
        frame = frame[frame.plays > 0].drop_duplicates("id")
        scores = 100 * frame[["plays", "likes"]].rank(method="average", pct=True) ** 3.106
        frame[["score_streams", "score_likes"]] = scores
        frame.to_parquet(folder / "plain.parquet")

    return (lambda: prepare(read_metadata(path), PrepareSettings(), folder / "out")), with_pandas


WORK = {
    "list songs": listing,
    "resume finished rows": resuming,
    "pairs": pairing,
    "arena evaluate": judging,
    "prepare": preparing,
}
LARGE = {"pairs", "prepare"}


def measure(name: str, count: int) -> tuple[float, float, float]:
    """Seconds of ours, of the plain way, and bytes that ours added to the peak."""
    with tempfile.TemporaryDirectory() as folder:
        WORK[name](100, Path(folder, "first"))[0]() if name in LARGE else None  # imports
        Path(folder, "work").mkdir()
        ours, plain = WORK[name](count, Path(folder, "work"))
        before = _peak()
        started = time.perf_counter()
        ours()
        seconds = time.perf_counter() - started
        grown = _peak() - before
        started = time.perf_counter()
        plain()
        return seconds, time.perf_counter() - started, grown


def _peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024.0


def main() -> None:
    """Every work at every size, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    rows = []
    for name in WORK:
        sizes = [int(text) for text in options.sizes.split(",")]
        sizes += [options.largest] if name in LARGE else []
        last: tuple[int, float] | None = None
        for count in sizes:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, plain, grown = pool.apply(measure, (name, count))
            slope = "-"
            if last is not None:
                slope = f"{math.log(seconds / last[1]) / math.log(count / last[0]):.2f}"
            last = (count, seconds)
            rows.append(
                [name, f"{count:,}", f"{seconds:.2f}", slope, f"{grown / count / 1024:.1f}",
                 f"{plain:.2f}", f"{plain / seconds:.2f}"]
            )  # fmt: skip
            print(rows[-1], flush=True)
    text = "Exponents between a size and the one before it; 1 is in proportion."
    write_result("Growth", f"{text}\n\n{markdown_table(COLUMNS, rows)}", options.output)


if __name__ == "__main__":
    main()
