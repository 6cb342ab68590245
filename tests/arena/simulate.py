"""Simulated battles with a known answer.

A song's score is its system's mean plus its own part. The vote follows sigmoid(slope * difference
of the named score + strength of A's system - strength of B's), so the slope, the strengths and
the best accuracy are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apex_reward.scores.apex import HEADS, head_range


def simulate_battles(
    n: int,
    *,
    slopes: Mapping[str, float],
    strengths: Mapping[str, float] | None = None,
    score_follows_system: float = 0.0,
    prompts: int | None = None,
    instrumental: float = 0.62,
    undecided: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of `n` battles, as a battle table has them.

    Args:
        slopes: score name -> log-odds per unit of the difference; a slope of 0 is a score
            without a signal. A song's own part of every score is standard normal.
        strengths: system -> log-odds; None means six systems of equal strength.
        score_follows_system: what a system's strength adds to every score of its songs.
        prompts: number of distinct prompts, or None for a prompt per battle.
        instrumental: share of instrumental battles.
        undecided: share of votes that are TIE or BOTH_BAD, half each.
    """
    rng = np.random.default_rng(seed)
    force = dict(strengths) if strengths else {f"system-{number}": 0.0 for number in range(1, 7)}
    systems = sorted(force)
    chosen = np.array([rng.choice(len(systems), 2, replace=False) for _ in range(n)])
    strength = np.array([force[name] for name in systems])[chosen]
    scores = {
        name: rng.standard_normal((n, 2)) + score_follows_system * strength for name in slopes
    }
    logit = strength[:, 0] - strength[:, 1]
    for name, slope in slopes.items():
        logit = logit + slope * (scores[name][:, 0] - scores[name][:, 1])
    a_won = rng.random(n) < 1 / (1 + np.exp(-logit))
    vote = np.where(a_won, "A", "B")
    open_votes = rng.random(n) < undecided
    vote = np.where(open_votes, np.where(rng.random(n) < 0.5, "TIE", "BOTH_BAD"), vote)
    flag = rng.random(n) < instrumental
    prompt = rng.integers(0, prompts, n) if prompts else np.arange(n)
    month = rng.integers(1, 5, n)
    return [
        {
            "battle_uuid": f"battle-{row:05d}",
            "preference": str(vote[row]),
            "system_a": systems[chosen[row, 0]],
            "system_b": systems[chosen[row, 1]],
            "is_instrumental": bool(flag[row]),
            "prompt": f"prompt {prompt[row]}",
            "date": f"2026-{month[row]:02d}-15",
            **{
                f"{name}_{side}": float(scores[name][row, column])
                for name in slopes
                for column, side in enumerate("ab")
            },
        }
        for row in range(n)
    ]


def simulate_heads(n: int = 1259, *, seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    """Battles with all seven heads in their ranges; likes and musicality carry a weak signal."""
    slopes = {head: 0.25 if head in ("score_likes", "musicality") else 0.0 for head in HEADS}
    rows = simulate_battles(n, slopes=slopes, seed=seed, **options)
    for head in HEADS:
        low, high = head_range(head)
        for row in rows:
            for side in "ab":
                share = 1 / (1 + np.exp(-row[f"{head}_{side}"]))
                row[f"{head}_{side}"] = float(low + (high - low) * share)
    return rows
