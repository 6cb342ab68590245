"""The tour's step on optimisation: the best of N by a score, beside its known quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apex_reward.demo.damage import DAMAGES
from apex_reward.demo.lessons import labels
from apex_reward.demo.plots import plot_gold
from apex_reward.scores.apex import AESTHETIC_HEADS
from apex_reward.scores.head import member_column

SIZES = (1, 2, 4, 8, 16, 32, 64)
CAUTION = 2.0


def run(folder: Path, songs: Sequence[Path], scores: Sequence[Mapping[str, Any]]) -> str:
    """Choose among all versions of all songs by three proxies and write `folder/gold.png`.

    Args:
        folder: of the tour.
        songs: the scored files; not read.
        scores: score rows with members, `damage` and `severity`.

    Returns:
        Text for a person: gold and proxy of one candidate and of the best of many.
    """
    gold = np.array([known_quality(row["damage"], row["severity"]) for row in scores])
    own = takewhile(scores[0].__contains__, (member_column("reward", i) for i in count()))
    members = np.array([[row[column] for row in scores] for column in own])
    mean, spread = members.mean(axis=0), members.std(axis=0)
    proxies = {
        "one member": members[0],
        f"mean of {len(members)}": mean,
        f"mean - {CAUTION:g} spreads": mean - CAUTION * spread,
    }
    sizes = [size for size in SIZES if size <= len(gold)]
    curves = {
        name: (best_of(gold, proxy, sizes), best_of(proxy, proxy, sizes))
        for name, proxy in proxies.items()
    }
    plot_gold(folder / "gold.png", sizes, curves)
    lines = [
        f"The proxy picks the best of N among the {len(gold)} files. Gold is what the labels of "
        "apex-tiny's training would give to each file's known damage; nothing optimises it. From "
        f"one candidate to the best of {sizes[-1]}:"
    ]
    for name, (truth, promised) in curves.items():
        lines.append(
            f"  {name}: proxy {promised[0]:.2f} -> {promised[-1]:.2f}, "
            f"gold {truth[0]:.2f} -> {truth[-1]:.2f}"
        )
    lines.append(f"the whole way: {folder / 'gold.png'}")
    return "\n".join(lines)


def known_quality(damage: str, severity: int) -> float:
    """The mean label of the aesthetic heads of a damaged song, in [0, 1]."""
    name = damage if severity else DAMAGES[0]
    found = labels(name, severity, 0.0, np.zeros(2, np.float32))
    return float(np.mean(found[-len(AESTHETIC_HEADS) :]))


def best_of(
    values: NDArray[np.floating], proxy: NDArray[np.floating], sizes: Sequence[int]
) -> list[float]:
    """Mean value (n,) of the proxy's favourite in a random subset of each size.

    In rising order of the proxy the i-th (from 0) is the favourite of N with the chance
    C(i, N - 1) / C(n, N) (Nakano et al. 2021, arXiv 2112.09332).
    """
    ordered, n = values[np.argsort(proxy, kind="stable")], len(values)
    chances = [[comb(i, size - 1) / comb(n, size) for i in range(n)] for size in sizes]
    return [float(np.dot(chance, ordered)) for chance in chances]
