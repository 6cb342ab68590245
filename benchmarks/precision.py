"""Do reduced precisions score real songs as float32 does?

    python benchmarks/precision.py SONGS [--songs 8] [--seconds 60] [--model apex-tiny]
                                   [--device cuda] [--output benchmarks/results/precision.md]

SONGS is a folder of real music; `--songs` of it, spread evenly over the sorted names, are scored in
every precision, and the rewards are compared with float32's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile
import torch
from result_file import write_result
from scipy.stats import spearmanr

from apex_reward import Reward, load_reward_model
from apex_reward.report.markdown import markdown_table
from apex_reward.scoring import find_audio

DTYPES = ("float32", "float16", "bfloat16")


def read_songs(folder: Path, count: int, seconds: float) -> list[tuple[torch.Tensor, int]]:
    """The first seconds of some songs, each (C, T) with its rate."""
    found = []
    paths = [Path(path) for path in find_audio([str(folder)])]
    paths = [path for path in paths if soundfile.info(path).duration >= seconds]
    for path in paths[:: max(1, len(paths) // count)][:count]:
        rate = soundfile.info(path).samplerate
        samples, _ = soundfile.read(
            path, frames=round(seconds * rate), dtype="float32", always_2d=True
        )
        found.append((torch.from_numpy(samples.T.copy()), rate))
    return found


def main() -> None:
    """Score, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="real songs")
    parser.add_argument("--songs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="heard of each")
    parser.add_argument("--model", default="apex-tiny")
    parser.add_argument("--mix", default="aesthetics")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    args = parser.parse_args()
    songs = read_songs(args.folder, args.songs, args.seconds)
    values = {}
    for dtype in DTYPES:
        reward = Reward(
            load_reward_model(args.model, dtype=dtype, device=args.device), mix=args.mix
        )
        with torch.no_grad():
            values[dtype] = torch.cat(
                [reward(song[None].to(args.device), rate).cpu() for song, rate in songs]
            ).double()
    base = values["float32"]
    rows = [
        [dtype, f"{(got - base).abs().max():.1e}", f"{(got - base).abs().mean():.1e}",
         f"{spearmanr(got, base).statistic:.3f}"]
        for dtype, got in values.items()
    ]  # fmt: skip
    columns = ["dtype", "largest difference", "mean difference", "rank correlation"]
    text = (
        f"{args.model}, mix `{args.mix}`, {len(songs)} real songs of {args.seconds:g} s; rewards "
        f"from {base.min():.3f} to {base.max():.3f} in float32; on {args.device}."
    )
    write_result("Precision", f"{text}\n\n{markdown_table(columns, rows)}", args.output)


if __name__ == "__main__":
    main()
