"""Tables and plots of `overoptimisation.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from result_file import write_result
from scipy.stats import t

from apex_reward.report.markdown import markdown_table

SIZES = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
PROXIES = ("one member", "mean of 8", "k = 0.5", "k = 1", "k = 2")
TUNED = ("one member", "mean of 8", "k = 1")  # by GRPO
MEAN = 1  # of both, the mean of 8
PENALTY = 1.0  # of a tripped guard, in standard deviations of the gold
GUARDS = ("off", "on")
Array = NDArray[np.float64]


class Found(NamedTuple):
    """Rewards of every seed; an axis of two is gold and proxy, but for the guards' off and on."""

    best: Array  # (seeds, proxies, guards, 2, sizes)
    climbs: Array  # (seeds, proxies, guards, 2, steps + 1)
    tunes: Array  # (seeds, those of GRPO, guards, 2 and KL, points)
    spreads: Array  # (seeds, in distribution and out of it)


def interval(values: Array) -> tuple[Array, Array]:
    """Mean over the seeds (the first axis) and half the width of its 95% interval."""
    count = len(values)
    half = t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0), half


def report(arguments: argparse.Namespace, found: Found, tripped: float) -> None:
    """Write the tables and, where a folder is named, the plots.

    Args:
        tripped: share of the pool that trips a guard.
    """
    best, climbs, tunes, spreads = found
    at = [SIZES.index(size) for size in (1, 16, 125, 1000)]
    last, end = climbs.shape[-1] - 1, tunes.shape[-1] - 1
    steps, points = [0, last // 3, last], [0, end // 2, end]
    tuned = [
        [proxy, guards, *map(cell(tunes[:, p, g, 0]), points), cell(tunes[:, p, g, 1])(end),
         cell(tunes[:, p, g, 2])(end), cell(tunes[:, p, g, 0] - tunes[:, MEAN, 0, 0])(end)]
        for g, guards in enumerate(GUARDS)
        for p, proxy in enumerate(TUNED)
    ]  # fmt: skip
    paired = [
        [proxy, *map(cell(best[:, p, 0, 0] - best[:, MEAN, 0, 0]), at[1:]),
         cell(climbs[:, p, 0, 0] - climbs[:, MEAN, 0, 0])(last)]
        for p, proxy in enumerate(PROXIES)
    ]  # fmt: skip
    stages = ("start", "middle", "end")
    inside, outside = (cell(spreads[:, i : i + 1])(0) for i in (0, 1))
    text = "\n\n".join(
        [
            "Rewards in standard deviations of the pool's gold; mean over the seeds and half the "
            "width of a 95% t interval.",
            "## Best of N", guarded_table(best, "best of", [SIZES[i] for i in at], at),
            "## Waveform gradient", guarded_table(climbs, "step", steps, steps),
            "## GRPO on the toy of notes",
            markdown_table(
                ("proxy", "guards", *(f"gold, {stage}" for stage in stages), "its proxy, end",
                 "KL, nats a song, end",
                 "gold, end, less the unguarded mean of 8's"), tuned,
            ),
            "## Gold, less the gold of the mean of 8 on the same seeds, guards off",
            markdown_table(
                ("proxy", *(f"best of {SIZES[i]}" for i in at[1:]), f"gradient, step {last}"),
                paired,
            ),
            f"Spread against error, rank correlation: {inside} in distribution, {outside} on "
            f"recordings damaged twice. {tripped:.0%} of the pool trip a guard; in best of N and "
            f"GRPO a guard costs {PENALTY:g}.",
        ]
    )  # fmt: skip
    write_result("Over-optimisation", text, arguments.output)
    if arguments.figures:
        draw(arguments.figures, found)


def guarded_table(values: Array, name: str, labels: list[int], positions: list[int]) -> str:
    """A table of (seeds, proxies, guards, gold and proxy, positions)."""
    rows = [
        [proxy, guards, *map(cell(values[:, p, g, 0]), positions),
         cell(values[:, p, g, 1])(positions[-1])]
        for g, guards in enumerate(GUARDS)
        for p, proxy in enumerate(PROXIES)
    ]  # fmt: skip
    golds = (f"gold, {name} {label}" for label in labels)
    return markdown_table(("proxy", "guards", *golds, f"its proxy, {name} {labels[-1]}"), rows)


def cell(values: Array) -> Callable[[int], str]:
    """A cell's text of the mean and interval of (seeds, ...) values at a position."""
    mean, half = interval(values)
    return lambda i: f"{mean[i]:+.2f} ± {half[i]:.2f}"


def draw(folder: Path, found: Found) -> None:
    """A plot per way of optimising and guards."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = np.broadcast_to(np.log(SIZES), (len(PROXIES), len(SIZES)))
    steps = found.climbs.shape[-1]
    climbed = np.broadcast_to(np.arange(steps), (len(PROXIES), steps))
    for guards, (ending, said) in enumerate((("", ""), ("-guarded", ", guards on"))):
        plot(folder / f"best-of-n{ending}.svg", found.best[:, :, guards], sizes, f"log N{said}")
        plot(
            folder / f"gradient{ending}.svg", found.climbs[:, :, guards], climbed,
            f"gradient steps{said}",
        )  # fmt: skip
        tunes = found.tunes[:, :, guards]
        plot(
            folder / f"grpo{ending}.svg", tunes[:, :, :2], tunes[:, :, 2].mean(axis=0),
            f"KL, nats a song{said}", TUNED,
        )  # fmt: skip


def plot(path: Path, values: Array, x: Array, label: str, names: Sequence[str] = PROXIES) -> None:
    """Gold (left) and proxy (right) of every proxy, (seeds, proxies, 2, x), over (proxies, x)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2, sharey=True))
    for side, (axes, title) in enumerate(zip(panels, ("gold", "proxy"), strict=True)):
        for p, proxy in enumerate(names):
            mean, half = interval(values[:, p, side])
            (line,) = axes.plot(x[p], mean, label=proxy)
            axes.fill_between(x[p], mean - half, mean + half, color=line.get_color(), alpha=0.12)
        axes.set(title=title, xlabel=label, ylabel="reward (sd of gold)" if side == 0 else "")
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
