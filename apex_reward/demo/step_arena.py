"""The tour's step on human votes: simulated battles with a known answer, through the real code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex_reward.arena import battles_of, evaluate_battles, findings
from apex_reward.arena.report import evaluation_report
from apex_reward.files.tables import write_json, write_table

BATTLES = 400
SLOPE = 2.0
SCORE = "musicality"


def run(folder: Path, songs: Sequence[Path], scores: Sequence[Mapping[str, Any]]) -> str:
    """Simulate votes that follow one head with a known slope, and measure what is found again.

    Args:
        folder: of the tour; the step writes `folder/arena`.
        songs: the scored files, in the order of `scores`.
        scores: score rows with the column `musicality`.

    Returns:
        Text for a person: the agreement found, the known answer, where the report is.
    """
    rows, best = simulated_votes(songs, scores)
    battles = battles_of(rows, scores=(SCORE, "coin"))
    metrics = evaluate_battles(battles, bootstrap=500)
    target = folder / "arena"
    write_table(target / "battles.csv", rows)
    write_json(target / "metrics.json", metrics)
    evaluation_report(metrics, target)
    overall = metrics["scores"][SCORE]["overall"]
    low, high = overall["accuracy_ci95"]
    found = "\n".join(f"  {words.text}" for words in findings(metrics))
    return (
        f"{len(rows)} simulated votes between songs that follow {SCORE}; a coin for comparison\n"
        f"{found}\n"
        f"known answer: following {SCORE} is right on {best:.1%} of such votes; found "
        f"{overall['accuracy']:.1%}, 95% interval {low:.1%} to {high:.1%}\n"
        f"the report: {target / 'report.html'}"
    )


def simulated_votes(
    songs: Sequence[Path], scores: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], float]:
    """Battles between random pairs of songs, and the accuracy that the score has in expectation.

    P(A wins) = sigmoid(SLOPE * difference of the standardised scores); `coin` is random.
    """
    rng = np.random.default_rng(0)
    usable = [index for index, row in enumerate(scores) if row.get(SCORE) is not None]
    value = np.array([float(scores[index][SCORE]) for index in usable])
    pairs = np.array([rng.choice(len(usable), 2, replace=False) for _ in range(BATTLES)])
    standardised = (value - value.mean()) / (value.std() or 1.0)
    difference = standardised[pairs[:, 0]] - standardised[pairs[:, 1]]
    chance = 1 / (1 + np.exp(-SLOPE * difference))
    a_won = rng.random(BATTLES) < chance
    coin = rng.random((BATTLES, 2))
    names = [Path(songs[index]).name for index in usable]
    rows = [
        {
            "battle_uuid": f"simulated-{number:03d}",
            "preference": "A" if won else "B",
            "audio_a": names[a],
            "audio_b": names[b],
            f"{SCORE}_a": float(value[a]),
            f"{SCORE}_b": float(value[b]),
            "coin_a": float(coin[number, 0]),
            "coin_b": float(coin[number, 1]),
        }
        for number, ((a, b), won) in enumerate(zip(pairs.tolist(), a_won.tolist(), strict=True))
    ]
    return rows, float(np.where(difference == 0, 0.5, np.maximum(chance, 1 - chance)).mean())
