"""Candidates for tests: by hand, and drawn at random with options that go with them."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from apex_reward.pairs.strategies import STRATEGIES

grid = st.integers(0, 8).map(lambda number: number / 2)
score = st.one_of(grid, grid, grid, st.sampled_from([None, math.nan, math.inf]))


@st.composite
def candidate_rows(draw):
    """Candidates with ties, gaps, lone candidates, absent axes, flags, groups; any order."""
    rows = []
    for prompt in range(draw(st.integers(1, 4))):
        for song in range(draw(st.integers(1, 6))):
            row = {"prompt_id": prompt, "audio": f"{prompt}/{song}.wav", "musicality": draw(score)}
            if draw(st.integers(0, 9)):
                row["clarity"] = draw(score)
            row["coherence"] = draw(grid)
            row["flags"] = draw(st.sampled_from([[], [], ["silent"], ["clipped", "silent"]]))
            row["group"] = draw(st.sampled_from([None, "a", "b", "c", "d"]))
            row["duration"] = draw(st.sampled_from([None, 10.0, 11.0, 14.0]))
            row["loudness"] = draw(st.sampled_from([None, -14.0, -15.0, -20.0]))
            rows.append(row)
    # An axis that no row names at all is an error of its own, tested below.
    rows.append({"prompt_id": 99, "audio": "99/0.wav", "musicality": 1.0, "clarity": 1.0})
    return draw(st.permutations(rows))


@st.composite
def choices(draw):
    """A strategy with options that go with it."""
    strategy = draw(st.sampled_from(sorted(STRATEGIES)))
    options = {"strategy": strategy, "axis": "musicality"}
    if strategy in ("mrsd", "pareto"):
        options["axes"] = ["clarity"]
    if strategy in ("margin", "mrsd"):
        options["quantile"] = draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))
    if strategy == "top-bottom":
        options["top_k"] = draw(st.integers(1, 3))
    if strategy == "two-axis":
        options["threshold"] = {"musicality": draw(grid), "clarity": draw(grid)}
    filters = {
        "min_margin": st.sampled_from([0.5, 1.5]),
        "protect": st.just({"coherence": 0.5}),
        "drop_flags": st.sampled_from([["silent"], ["clipped"]]),
        "chosen_floor": st.sampled_from([2.0, "q0.5"]),
        "rejected_ceiling": st.sampled_from([1.5, "q0.75"]),
        "match_duration": st.sampled_from([0.0, 1.0, 3.0]),
        "match_loudness": st.sampled_from([0.0, 1.0, 6.0]),
        "max_pairs_per_prompt": st.integers(1, 3),
        "max_pairs_per_candidate": st.integers(1, 2),
    }
    # Two at a time: all together leave no pair to look at.
    for name in draw(st.lists(st.sampled_from(sorted(filters)), max_size=2, unique=True)):
        options[name] = draw(filters[name])
    return options


def songs(*scores: float, **columns: object) -> list[dict]:
    return [
        {"prompt_id": 1, "audio": f"{n}.wav", "musicality": value, **columns}
        for n, value in enumerate(scores)
    ]
