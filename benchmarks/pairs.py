"""Pairs from a million candidates, against a pandas group-by loop over the same table.

python benchmarks/pairs.py [--quick] [--output FILE.md]
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from result_file import write_result

from apex_reward.files.tables import write_table
from apex_reward.pairs.build import build
from apex_reward.pairs.candidates import read_candidates
from apex_reward.pairs.export import write_folder
from apex_reward.pairs.options import PairOptions

SIZES = [(10_000, 1_000), (100_000, 10_000), (1_000_000, 100_000)]
Pairs = set[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument("--output", type=Path, help="also write the table as Markdown")
    args = parser.parse_args()
    lines = [
        "| candidates | prompts | strategy | pairs | build_pairs | with files "
        "| pandas group-by loop | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    build(made_up(100, 10), CASES[0][0])  # imports are not what is timed
    for candidates, prompts in SIZES[:1] if args.quick else SIZES:
        table = made_up(candidates, prompts)
        for options, loop in CASES:
            lines.append(row(table, prompts, options, loop))
            print(lines[-1], file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines += ["", f"Peak memory of the process: {peak:.1f} GiB."]
    write_result("Pairs", "\n".join(lines), args.output)


def row(
    table: pa.Table, prompts: int, options: PairOptions, loop: Callable[[pd.DataFrame], Pairs]
) -> str:
    """Both ways on one table, held to the same pairs."""
    seconds, result = timed(lambda: build(table, options))
    frame = table.to_pandas()
    loop_seconds, expected = timed(lambda: loop(frame))
    audio = np.array(result.candidates.table["audio"].to_pylist())
    found = set(zip(audio[result.chosen].tolist(), audio[result.rejected].tolist(), strict=True))
    if found != expected:
        raise SystemExit(f"{options.strategy}: {len(found ^ expected)} pairs differ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidates.parquet"
        write_table(path, table)
        whole, _ = timed(
            lambda: write_folder(build(read_candidates(path), options), Path(folder) / "out")
        )
    return (
        f"| {len(table):,} | {prompts:,} | {options.strategy} | {len(found):,} | {seconds:.2f} s "
        f"| {whole:.2f} s | {loop_seconds:.2f} s | {loop_seconds / seconds:.1f}x |"
    )


def made_up(candidates: int, prompts: int) -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "prompt_id": random.integers(0, prompts, candidates),
            "audio": [f"songs/{n:07d}.wav" for n in range(candidates)],
            "musicality": random.uniform(1, 5, candidates).round(2),
            "clarity": random.uniform(1, 5, candidates).round(2),
            "group": [f"artist {n}" for n in random.integers(0, prompts, candidates)],
        }
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def best_worst_loop(frame: pd.DataFrame) -> Pairs:
    pairs = set()
    for _, songs in frame.sort_values(["prompt_id", "audio"]).groupby("prompt_id"):
        best, worst = songs.musicality.idxmax(), songs.musicality.idxmin()
        if songs.musicality[best] > songs.musicality[worst]:
            pairs.add((songs.audio[best], songs.audio[worst]))
    return pairs


def margin_loop(frame: pd.DataFrame) -> Pairs:
    pairs = set()
    for _, songs in frame.groupby("prompt_id"):
        audio, score = songs.audio.to_numpy(), songs.musicality.to_numpy()
        lead = score[:, None] - score[None, :]
        if len(songs) > 1:
            least = np.quantile(np.abs(lead[np.triu_indices(len(songs), 1)]), 0.75)
            for i, j in np.argwhere((lead > 0) & (lead >= least)):
                pairs.add((audio[i], audio[j]))
    return pairs


def pareto_loop(frame: pd.DataFrame) -> Pairs:
    pairs = set()
    for _, songs in frame.groupby("prompt_id"):
        audio = songs.audio.to_numpy()
        values = songs[["musicality", "clarity"]].to_numpy()
        lead = values[:, None] - values[None, :]
        wins = (lead >= 0).all(-1) & (lead >= 1.0).any(-1)
        for i, j in np.argwhere(wins):
            pairs.add((audio[i], audio[j]))
    return pairs


CASES: list[tuple[PairOptions, Callable[[pd.DataFrame], Pairs]]] = [
    (PairOptions("best-worst", "musicality"), best_worst_loop),
    (PairOptions("margin", "musicality"), margin_loop),
    (PairOptions("pareto", "musicality", ("clarity",), min_margin=1.0), pareto_loop),
]

if __name__ == "__main__":
    main()
