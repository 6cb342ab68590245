"""What a panel costs: its members apart, its distinct encoders alone, and the panel itself.

    python benchmarks/panel.py [--songs 4 --seconds 20 --repeat 5] [--device cuda]
                              [--output FILE]

The panel has three members behind two encoders: two APEX predictors over one MERT (apex-tiny's size
unless a model is named) and SongEval at a small size with random weights. All ways run in one
process on the same songs, in turns; medians are compared.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from clock import clock
from result_file import write_result

from apex_reward import ApexReward, Panel
from apex_reward.model.encode import song_features
from apex_reward.model.encoders.muq import MuqConfig
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.foreign.songeval import SongEval

RATE = 24_000


def main() -> None:
    """Measure, print and write the table."""
    args = parsed()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    first, second = (ApexReward.from_pretrained(args.model).to(args.device) for _ in range(2))
    small = MuqConfig(width=64, depth=7, heads=4, feed_forward=128, channels=32)
    third = SongEval(small, 128).to(args.device)
    panel = Panel({"first": first, "second": second, "songeval": third})
    songs = (torch.randn(args.songs, int(args.seconds * RATE)) * 0.1).to(args.device)
    members = list(panel.models.values())
    ways: dict[str, Callable[[], object]] = {
        "members apart": lambda: [member(songs, RATE) for member in members],
        "distinct encoders alone": lambda: song_features(panel.encoders, songs, RATE),
        "panel": lambda: panel(songs, RATE),
    }
    seconds = measured(ways, args.repeat, args.device)
    encoders = seconds["distinct encoders alone"]
    rows = [
        [name, f"{value:.2f}", f"{value / encoders:.2f}", f"{value / seconds['members apart']:.2f}"]
        for name, value in seconds.items()
    ]
    table = markdown_table(["way", "s", "against the encoders", "against apart"], rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = (
        f"{args.songs} songs of {args.seconds:g} s, medians of {args.repeat} turns; "
        f"{len(members)} members, {len(panel.encoders)} encoders; peak of the process "
        f"{peak:.1f} GiB; on {args.device}."
    )
    write_result("Panel", f"{text}\n\n{table}", args.output)


def measured(ways: dict[str, Callable[[], object]], repeat: int, device: str) -> dict[str, float]:
    """Median seconds of each way, in turns after one run to warm up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            started = clock(device)
            way()
            if turn:
                found[name].append(clock(device) - started)
    return {name: statistics.median(values) for name, values in found.items()}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="apex-tiny")
    parser.add_argument("--songs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
