"""The learning curve of a calibration: how many anchor votes does it take?

Per repeat, a seeded draw sets `test_size` battles aside; the first K of the shuffled rest are the
anchors, so a larger K adds votes to the smaller one's. Where prompts are given, battles on a
prompt of the test set are never anchors. The prior's strength is chosen within the anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apex_reward.arena.calibration import Design, fit_calibration, fit_systems
from apex_reward.arena.reliability import root_mean_square
from apex_reward.arena.results import CurvePoint, CurveRow
from apex_reward.errors import UsageError
from apex_reward.metrics import FloatArray, IntArray, accuracy


def learning_curve(
    design: Design, *, anchors: Sequence[int], test_size: int, repeats: int, seed: int = 0
) -> tuple[CurveRow, ...]:
    """A row per K: what the score as it is, the calibrated one and the systems alone get.

    With K = 0 the calibrated score is the uncalibrated one and the systems alone get 0.5.

    Raises:
        UsageError: more test battles and anchors than there are, or a negative number.
    """
    _check(len(design.label), anchors, test_size, repeats)
    tests, pools = zip(
        *(_draw(design, test_size, seed, repeat) for repeat in range(repeats)), strict=True
    )
    smallest = min(len(pool) for pool in pools)
    if max(anchors) > smallest:
        raise UsageError(
            f"{max(anchors)} anchors asked for, but only {smallest} battles are on prompts that "
            f"the {test_size} test battles do not use; lower --anchors or --test-size"
        )
    return tuple(_row(design, count, tests, pools, seed) for count in anchors)


def _row(
    design: Design, count: int, tests: Sequence[IntArray], pools: Sequence[IntArray], seed: int
) -> CurveRow:
    repeats = [
        _accuracies(design.select(pool[:count]), design.select(test), seed)
        for test, pool in zip(tests, pools, strict=True)
    ]
    return CurveRow(
        anchors=count,
        **{name: _point([repeat[name] for repeat in repeats]) for name in repeats[0]},
    )


def _point(values: Sequence[float]) -> CurvePoint:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return CurvePoint(float(np.mean(values)), spread, tuple(values))


def _accuracies(anchors: Design, test: Design, seed: int) -> dict[str, float]:
    plain = test.uncalibrated(root_mean_square(test.scores))
    logits: dict[str, FloatArray] = {
        "uncalibrated": plain,
        "calibrated": plain,
        "system_only": np.zeros(len(plain)),
    }
    if len(anchors.label):
        logits["calibrated"] = fit_calibration(anchors, seed=seed).logit(test)
        if anchors.system_names:
            logits["system_only"] = test.systems @ fit_systems(anchors, seed=seed)
    return {name: accuracy(logit, test.label > 0) for name, logit in logits.items()}


def _draw(design: Design, test_size: int, seed: int, repeat: int) -> tuple[IntArray, IntArray]:
    order = np.random.default_rng([seed, repeat]).permutation(len(design.label))
    test, rest = order[:test_size], order[test_size:]
    fresh = ~np.isin(design.groups[rest], design.groups[test])
    return test, rest[fresh]


def _check(n: int, anchors: Sequence[int], test_size: int, repeats: int) -> None:
    if not anchors or min(anchors) < 0:
        raise UsageError(f"anchors are {list(anchors)}; expected numbers of votes, as 0,10,100")
    if test_size < 1 or repeats < 1:
        raise UsageError(f"test size {test_size}, repeats {repeats}; expected at least 1 each")
    if test_size + max(anchors) > n:
        raise UsageError(
            f"{test_size} test battles and {max(anchors)} anchors need {test_size + max(anchors)} "
            f"battles with a decision and a score; there are {n}"
        )
