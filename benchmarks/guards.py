"""How often do the guards trip on real music, and how often on songs that game a reward?

    python benchmarks/guards.py SONGS [--seconds 60] [--shortest 25] [--gamed-seconds 30]
                                [--gamed-every 1] [--output benchmarks/results/guards.md]

SONGS is a folder of real music. A guard that trips on the first minute of a song as it is is a
false alarm. The same songs are then changed in the ways of `benchmarks/hacking.py`, at 24 kHz, and
a changed song is caught when any guard trips. The changes that any musician may choose (10 dB
softer or louder, which loudness normalisation undoes; eight seconds; a band of 6 kHz, where two of
the songs below end) are listed, and not counted as gamed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from apex_reward.audio.resample import resample
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.guards import Guards
from apex_reward.scoring import find_audio

sys.path.insert(0, str(Path(__file__).parent))
from hacking import CHANGES, RATE
from result_file import write_result

FAIR = {"none", "gain -10 dB", "gain +10 dB", "cut to 8 s", "low-pass 6000 Hz"}


class Tally:
    """Counts of what tripped: per guard on the songs as they are, per change on changed ones."""

    def __init__(self) -> None:
        self.guards = Guards()
        self.alarmed: dict[str, list[str]] = {name: [] for name in self.guards.names}
        self.caught: Counter[str] = Counter()
        self.by: dict[str, Counter[str]] = {name: Counter() for name in CHANGES}
        self.songs = 0
        self.changed = 0
        self.any = 0

    def real(self, name: str, mono: Tensor, rate: int) -> None:
        flags = self.guards.flags(self.guards.measure(mono, rate))
        self.songs += 1
        self.any += bool(flags)
        for flag in flags:
            self.alarmed[flag].append(name)

    def gamed(self, mono: Tensor) -> None:
        self.changed += 1
        for name, change in CHANGES.items():
            flags = self.guards.flags(self.guards.measure(change(mono), RATE))
            self.caught[name] += bool(flags)
            self.by[name].update(flags)

    def text(self) -> str:
        rows: list[list[object]] = []
        for guard in self.guards.guards:
            songs = self.alarmed[guard.name]
            limits = f"{guard.low:g} to {guard.high:g} {guard.unit}"
            rows.append([guard.name, limits, *_share(len(songs), self.songs), ", ".join(songs)])
        rows.append(["any", "", *_share(self.any, self.songs), ""])
        alarms = markdown_table(("guard", "limits", "false alarms", "share", "songs"), rows)
        rows = []
        for name in CHANGES:
            by = ", ".join(flag for flag, _ in self.by[name].most_common(3))
            counted = "" if name in FAIR else "yes"
            rows.append([name, counted, *_share(self.caught[name], self.changed), by])
        gamed = [name for name in CHANGES if name not in FAIR]
        hits, tries = sum(self.caught[name] for name in gamed), self.changed * len(gamed)
        rows.append(["all gamed", "yes", *_share(hits, tries), ""])
        catches = markdown_table(("change", "gamed", "caught", "share", "by"), rows)
        return f"## Songs as they are\n\n{alarms}\n\n## Changed songs\n\n{catches}"


def _share(hits: int, tries: int) -> tuple[str, str]:
    return f"{hits}/{tries}", f"{hits / tries:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("songs", type=Path, help="folder of real music")
    parser.add_argument("--seconds", type=float, default=60.0, help="heard of each song")
    parser.add_argument("--shortest", type=float, default=25.0, help="jingles are left out")
    parser.add_argument("--gamed-seconds", type=float, default=30.0, help="of each changed song")
    parser.add_argument("--gamed-every", type=int, default=1, help="change each N-th song only")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    started = time.perf_counter()
    tally = Tally()
    for path in find_audio([str(args.songs)]):
        with soundfile.SoundFile(path) as file:  # not the whole file: some last half an hour
            rate = file.samplerate
            samples = file.read(round(args.seconds * rate), dtype="float32", always_2d=True)
        mono = torch.tensor(samples.mean(axis=1))
        if len(mono) < args.shortest * rate:
            continue
        tally.real(Path(path).name, mono, rate)
        low = resample(mono, rate, RATE)[: round(args.gamed_seconds * RATE)]
        if (tally.songs - 1) % args.gamed_every == 0:
            tally.gamed(low)
        print(tally.songs, Path(path).name, end="   \r", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - started
    text = (
        f"{tally.songs} songs of at least {args.shortest:g} s, the first "
        f"{args.seconds:g} s of each; changed songs: the first {args.gamed_seconds:g} s of "
        f"{tally.changed} of them at 24 kHz. "
        f"A change is caught when any guard trips; those not marked as gamed are choices that any "
        f"musician may make.\n\n{tally.text()}\n\n{seconds:.0f} s."
    )
    write_result("Guards on real music", text, args.output)


if __name__ == "__main__":
    main()
