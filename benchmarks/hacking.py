"""How easily is the reward fooled? Manipulated songs against the songs themselves.

    python benchmarks/hacking.py [--quick] [--audio-dir DIR] [--model M] [--output hacking.md]

Songs (synthetic ones, or the files of a folder) are changed in ways a policy could find, none of
which makes better music. For each change: how much the mean reward moves, in its own units, for the
raw reward (the baseline) and for the guarded one (loudness normalised to -18 LUFS, every default
guard subtracting 0.5); how many songs gain by it; and how many trip a guard. A change that raises a
reward is a way to game it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from result_file import write_result
from torch import Tensor

from apex_reward import ApexReward, ApexRewardFunction
from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.demo import make_song
from apex_reward.report.markdown import markdown_table
from apex_reward.scoring import find_audio

RATE = 24_000
COLUMNS = (
    "change", "raw reward", "songs that gain", "guarded reward", "songs that still gain",
    "songs flagged", "by",
)  # fmt: skip


def gain(decibels: float) -> Callable[[Tensor], Tensor]:
    return lambda song: song * 10 ** (decibels / 20)


def silence(share: float) -> Callable[[Tensor], Tensor]:
    return lambda song: torch.nn.functional.pad(song, (0, round(len(song) * share)))


def cut(seconds: float) -> Callable[[Tensor], Tensor]:
    return lambda song: song[: round(seconds * RATE)]


def loop(seconds: float) -> Callable[[Tensor], Tensor]:
    def change(song: Tensor) -> Tensor:
        piece = song[: round(seconds * RATE)]
        return piece.repeat(-(-len(song) // len(piece)))[: len(song)]

    return change


def clip(decibels: float) -> Callable[[Tensor], Tensor]:
    """Push the song's 99.9 % level to full scale, then so many decibels into clipping."""

    def change(song: Tensor) -> Tensor:
        level = song.abs().sort().values[int(0.999 * len(song))].clamp(min=1e-6)
        return (song / level * 10 ** (decibels / 20)).clamp(-1, 1)

    return change


def low_pass(hertz: float) -> Callable[[Tensor], Tensor]:
    def change(song: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(song)
        spectrum[int(hertz * len(song) / RATE) :] = 0
        return torch.fft.irfft(spectrum, len(song))

    return change


def hiss(decibels: float) -> Callable[[Tensor], Tensor]:
    def change(song: Tensor) -> Tensor:
        noise = torch.randn(len(song), generator=torch.Generator().manual_seed(0))
        return song + noise * song.std() * 10 ** (-decibels / 20)

    return change


def rumble(song: Tensor) -> Tensor:
    return song + 2 * song.std() * torch.sin(torch.arange(len(song)) * (2 * torch.pi * 8 / RATE))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda song: song,
    **{f"gain {db:+d} dB": gain(db) for db in (-30, -20, -10, 10)},
    **{f"silence after, {share:.0%} more": silence(share) for share in (0.25, 0.5, 1.0)},
    **{f"cut to {seconds} s": cut(seconds) for seconds in (8, 4, 2)},
    **{f"loop of {seconds} s": loop(seconds) for seconds in (4, 2, 0.5)},
    **{f"clipped by {db} dB": clip(db) for db in (6, 12, 24)},
    **{f"low-pass {hertz} Hz": low_pass(hertz) for hertz in (6000, 3000, 1000)},
    **{f"white noise at {db} dB SNR": hiss(db) for db in (10, 0, -10)},
    "8 Hz rumble": rumble,
    "offset 0.1": lambda song: song + 0.1,
}


def songs_of(args: argparse.Namespace) -> list[Tensor]:
    """Mono songs at 24 kHz of at most `--seconds`."""
    if args.audio_dir is None:
        count = 4 if args.quick else args.songs
        return [torch.tensor(make_song(args.seed + i, args.seconds, RATE)) for i in range(count)]
    loaded = [load_audio(path) for path in find_audio([str(args.audio_dir)])]
    return [
        resample(torch.tensor(song.mono), song.sample_rate, RATE)[: round(args.seconds * RATE)]
        for song in loaded
    ]


def rewards_of(function: ApexRewardFunction, songs: list[Tensor]) -> tuple[list[float], list[str]]:
    """Reward and flags (joined by ;) of each song."""
    columns: dict[str, list[str]] = {}
    rewards = function(songs, songs, log_extra=columns.__setitem__)
    return [float(reward or 0.0) for reward in rewards], columns["apex/flags"]


def table(args: argparse.Namespace) -> list[list[str]]:
    model = ApexReward.from_pretrained(args.model, segment_seconds=args.segment_seconds)

    def decode(completions: list[Tensor]) -> list[Tensor]:
        return completions

    functions = {
        "raw": ApexRewardFunction(model, args.mix, decode=decode, sample_rate=RATE, guards="flag"),
        "guarded": ApexRewardFunction(
            model,
            args.mix,
            decode=decode,
            sample_rate=RATE,
            guards="penalty",
            loudness=-18.0,
        ),
    }
    songs = songs_of(args)
    before = {name: rewards_of(function, songs)[0] for name, function in functions.items()}
    spread = statistics.pstdev(before["raw"]) or 1.0
    rows = []
    for name, change in CHANGES.items():
        changed = [change(song) for song in songs]
        row = [name]
        for which, function in functions.items():
            rewards, flags = rewards_of(function, changed)
            moves = [new - old for new, old in zip(rewards, before[which], strict=True)]
            row.append(f"{statistics.fmean(moves):+.3f}")
            row.append(f"{sum(move > 0.05 * spread for move in moves)}/{len(moves)}")
        tripped = Counter(flag for joined in flags for flag in joined.split(";") if flag)
        row.append(f"{sum(map(bool, flags))}/{len(flags)}")
        row.append(", ".join(flag for flag, _ in tripped.most_common(3)))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four songs")
    parser.add_argument("--songs", type=int, default=8, help="synthetic songs")
    parser.add_argument("--audio-dir", type=Path, help="real songs in place of synthetic ones")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each song")
    parser.add_argument("--model", default="apex-tiny")
    parser.add_argument("--segment-seconds", type=float, default=10.0)
    parser.add_argument("--mix", default="aesthetics")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    args = parser.parse_args()
    started = time.perf_counter()
    text = markdown_table(COLUMNS, table(args))
    name = args.model + (" (a demonstration model)" if args.model == "apex-tiny" else "")
    seconds = time.perf_counter() - started
    write_result("Hacking", f"{name}, mix {args.mix}, {seconds:.0f} s.\n\n{text}", args.output)


if __name__ == "__main__":
    main()
