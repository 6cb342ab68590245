"""Bootstrap of accuracy and AUC over battles and prompts: all rounds at once, against a loop.

    python benchmarks/arena.py [--quick] [--output table.md]

The loop resamples rows (or whole prompts) and calls scikit-learn's `roc_auc_score` in every round.
Both draw the same battles from the same seed, so their intervals must be equal.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from result_file import write_result
from sklearn.metrics import roc_auc_score

from apex_reward.arena.intervals import PairedRounds
from apex_reward.metrics import bootstrap, percentile_interval
from apex_reward.report.markdown import markdown_table

COLUMNS = (
    "resampled",
    "battles",
    "rounds",
    "loop, s",
    "vectorised, s",
    "times faster",
    "largest gap",
)


def plain_loop(difference, a_won, rounds, seed, prompts):
    """Accuracy and AUC of every round, one resampled battle set after the other."""
    rng = np.random.default_rng(seed)
    members = None
    if prompts is not None:
        members = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]
    accuracies, aucs = [], []
    for _ in range(rounds):
        if members is None:
            rows = rng.integers(0, len(difference), size=len(difference))
        else:
            drawn = rng.integers(0, len(members), size=len(members))
            rows = np.concatenate([members[number] for number in drawn])
        d, won = difference[rows], a_won[rows]
        accuracies.append(np.mean(np.where(d == 0, 0.5, (d > 0) == won)))
        aucs.append(roc_auc_score(won, d))
    return np.array(accuracies), np.array(aucs)


def compare(kind, battles, rounds):
    """One row of the table: both ways on the same battles."""
    rng = np.random.default_rng(0)
    difference = np.round(rng.normal(size=battles), 3)  # some ties
    a_won = rng.random(battles) < 1 / (1 + np.exp(-0.3 * difference))
    prompts = rng.integers(0, battles // 3, battles) if kind == "prompts" else None
    start = time.perf_counter()
    loop = plain_loop(difference, a_won, rounds, 0, prompts)
    middle = time.perf_counter()
    paired = PairedRounds(difference, a_won)
    fast = [
        bootstrap(statistic, battles, rounds=rounds, seed=0, clusters=prompts)
        for statistic in (paired.accuracy, paired.auc)
    ]
    end = time.perf_counter()
    gap = max(
        abs(a - b)
        for one, other in zip(loop, fast, strict=True)
        for a, b in zip(percentile_interval(one), percentile_interval(other), strict=True)
    )
    assert gap < 1e-9, f"the two ways differ by {gap}"
    slow, quick = middle - start, end - middle
    return [
        kind,
        battles,
        rounds,
        f"{slow:.2f}",
        f"{quick:.2f}",
        f"{slow / quick:.0f}",
        f"{gap:.0e}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 battles, 200 rounds")
    parser.add_argument("--output", type=Path, help="Markdown file")
    options = parser.parse_args()
    battles, rounds = (1_000, 200) if options.quick else (10_000, 1_000)
    rows = [compare(kind, battles, rounds) for kind in ("battles", "prompts")]
    table = markdown_table(COLUMNS, rows)
    write_result("Arena", table, options.output)


if __name__ == "__main__":
    main()
