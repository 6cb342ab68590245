"""How many votes `listen --order informative` saves, with simulated voters of a known preference.

    python benchmarks/listening.py [--seeds 20 --votes 200 --pool 400 --output FILE]

Each seed draws songs of six systems with seven heads (one common factor, a part of their own, a
part of their system) and a voter who weighs the heads and favours systems, and votes with the
probability sigmoid(utility of the first less the second). Utilities are scaled so that the
voter's better song wins three votes of four. The same model is fitted to the votes in each order;
accuracy is the share of 2,000 other pairs on which it names the song that the voter truly prefers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from result_file import write_result
from scipy.special import expit

from apex_reward.arena.heldout import fit_logistic
from apex_reward.listen.informative import PRIOR, expected_gain, features_of
from apex_reward.listen.sources import Comparison
from apex_reward.report.markdown import markdown_table

HEADS, SYSTEMS, OTHERS = 7, 6, 2000
ORDERS = ("random", "smallest margin", "informative")
MARKS = (10, 25, 50, 100, 200)


def main() -> None:
    """Simulate, print and write the tables."""
    args = parsed()
    curves = np.array([simulated(seed, args.votes, args.pool) for seed in range(args.seeds)])
    marks = [mark for mark in MARKS if mark <= args.votes]
    rows = [
        [order, *(with_interval(curves[:, number, mark - 1]) for mark in marks)]
        for number, order in enumerate(ORDERS)
    ]
    accuracy = markdown_table(["order", *(f"{mark} votes" for mark in marks)], rows)
    saved = markdown_table(
        ["random order's votes", "informative needs", "95% over seeds", "accuracy"],
        [needed(curves, mark) for mark in marks],
    )
    write_result(
        "Listening",
        f"{args.seeds} seeds, {args.pool} pairs to choose from; accuracy on {OTHERS} other pairs, "
        f"mean and 95% interval over the seeds.\n\n{accuracy}\n\nVotes after which the mean "
        "accuracy of the informative order reaches that of random order, with the interval of "
        f"1,000 bootstrap draws of the seeds.\n\n{saved}",
        args.output,
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--pool", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/listening.md"))
    return parser.parse_args()


def simulated(seed: int, votes: int, pool: int) -> np.ndarray:
    """(orders, votes) accuracy after each vote of one voter."""
    random = np.random.default_rng(seed)
    number = 2 * (pool + OTHERS)
    system = random.integers(SYSTEMS, size=number)
    by_system = random.normal(size=(SYSTEMS, HEADS))
    common, own = random.normal(size=(number, 1)), random.normal(size=(number, HEADS))
    heads = common + own + 0.7 * by_system[system]
    taste, favour = random.normal(size=HEADS), 1.5 * random.normal(size=SYSTEMS)
    utility = heads @ taste + favour[system]
    gap = utility[0::2] - utility[1::2]
    gap *= scale_for(gap, 0.75)
    features = features_of([comparison(heads, system, n) for n in range(pool + OTHERS)])
    known, other = features[:pool], features[pool:]
    truth = gap[pool:] > 0
    first_wins = random.random(pool) < expit(gap[:pool])
    margin = np.abs(heads[0::2] - heads[1::2]).mean(axis=1)[:pool]
    fixed = {"random": random.permutation(pool), "smallest margin": np.argsort(margin)}
    result = np.empty((len(ORDERS), votes))
    for number, order in enumerate(ORDERS):
        asked: list[int] = []
        for vote in range(votes):
            if order in fixed:
                asked.append(int(fixed[order][vote]))
            else:
                gain = expected_gain(
                    known, np.array(asked, np.intp), first_wins[asked].astype(float)
                )
                gain[asked] = -1
                asked.append(int(gain.argmax()))
            weights = fit_logistic(known[asked], first_wins[asked], PRIOR)
            result[number, vote] = np.mean((other @ weights > 0) == truth)
    return result


def comparison(heads: np.ndarray, system: np.ndarray, number: int) -> Comparison:
    """Songs 2n and 2n + 1."""
    one, two = 2 * number, 2 * number + 1
    scores = {f"head{n}": (heads[one, n], heads[two, n]) for n in range(HEADS)}
    names = f"system{system[one]}", f"system{system[two]}"
    return Comparison("", (Path(str(one)), Path(str(two))), names, scores)


def scale_for(gap: np.ndarray, wanted: float) -> float:
    """The factor at which the better song of a pair gets this share of the votes."""
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if expit(middle * np.abs(gap)).mean() < wanted else (low, middle)
    return low


def with_interval(values: np.ndarray) -> str:
    """Mean and normal interval over seeds."""
    reach = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ± {reach:.3f}"


def needed(curves: np.ndarray, mark: int) -> list[object]:
    """A row: random order's votes, those of the informative order, interval, accuracy."""
    random = np.random.default_rng(0)
    draws = random.integers(len(curves), size=(1000, len(curves)))
    counts = [first_to_reach(curves[draw].mean(axis=0), mark) for draw in draws]
    low, high = np.percentile(counts, [2.5, 97.5])
    mean = curves.mean(axis=0)
    return [
        mark,
        first_to_reach(mean, mark),
        f"{low:.0f} to {high:.0f}",
        f"{mean[0, mark - 1]:.3f}",
    ]


def first_to_reach(mean: np.ndarray, mark: int) -> int:
    """Votes of the informative order; one more than there are where it never gets there."""
    there = np.flatnonzero(mean[2] >= mean[0, mark - 1])
    return int(there[0]) + 1 if len(there) else mean.shape[1] + 1


if __name__ == "__main__":
    main()
