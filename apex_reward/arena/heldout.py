"""Predictions of votes that a fit has not seen, and how reliable their probabilities are.

The features of a battle are differences, and the models have no constant, so they are
antisymmetric: with A and B swapped the probability is one minus itself. Folds keep the battles of
one prompt together and do not depend on the order of rows.

Shape key: N = battles, P = features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold

from apex_reward.errors import DataError
from apex_reward.metrics import FloatArray, IntArray

FOLDS = 10
L2_GRID = (0.3, 3.0, 30.0, 300.0)
"""Strengths of the prior that are compared, from nearly none to nearly nothing learned."""
SLOPE_L2 = 1e-6  # keeps the slope finite where one value separates the votes
BINS = 10
Fold = tuple[IntArray, IntArray]


def fit_logistic(features: FloatArray, label: npt.ArrayLike, l2: float) -> FloatArray:
    """(P,) coefficients that minimise sum of log loss + l2 / 2 * |coefficients|^2.

    Args:
        features: (N, P).
        label: (N,) in [0, 1]; 0.5 is half a vote for each side.
        l2: strength of the prior, above zero.
    """
    target = np.asarray(label, dtype=np.float64)
    if 0 in features.shape:
        return np.zeros(features.shape[1])
    # Each row counts once per outcome, so that fractions and one class alone need no other model.
    model = LogisticRegression(
        C=1 / l2, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=1000
    )
    outcome = np.repeat([1, 0], len(target))
    model.fit(np.vstack([features, features]), outcome, np.concatenate([target, 1 - target]))
    return np.asarray(model.coef_[0], dtype=np.float64)


def choose_l2(features: FloatArray, label: FloatArray, groups: IntArray, *, seed: int) -> float:
    """The strength of the prior with the lowest log loss in three grouped folds.

    The middle of the grid where one group leaves nothing to hold out.
    """
    if len(np.unique(groups)) < 2 or 0 in features.shape:
        return L2_GRID[len(L2_GRID) // 2]
    # With every battle's mirror image both outcomes are in every fold, and the loss is the same.
    search = GridSearchCV(
        LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-8),
        {"C": [0.5 / l2 for l2 in L2_GRID]},
        scoring="neg_log_loss",
        cv=group_folds(np.tile(groups, 2), 3, seed),
        refit=False,
    )
    search.fit(np.vstack([features, -features]), np.concatenate([label, 1 - label]))
    return 0.5 / float(search.best_params_["C"])


def group_folds(groups: IntArray, folds: int, seed: int) -> list[Fold]:
    """Row numbers (train, test) of every fold; a group is never split.

    With fewer groups than folds every group is a fold. Raises DataError for a single group.
    """
    count = len(np.unique(groups))
    if count < 2:
        raise DataError(f"held-out figures need at least two groups of battles; there is {count}")
    splitter = GroupKFold(min(folds, count), shuffle=True, random_state=seed)
    return list(splitter.split(groups, groups=groups))


def held_out_logit(
    features: FloatArray, label: npt.ArrayLike, groups: IntArray, *, l2: float, seed: int
) -> FloatArray:
    """(N,) log-odds that A wins, from a fit on the folds without the battle's group.

    Features are scaled to unit mean square on the training folds. NaN where there is one group.
    """
    logit = np.full(len(features), math.nan)
    target = np.asarray(label, dtype=np.float64)
    if len(np.unique(groups)) < 2:
        return logit
    for train, test in group_folds(groups, FOLDS, seed):
        scale = root_mean_square(features[train])
        coefficients = fit_logistic(features[train] / scale, target[train], l2)
        logit[test] = features[test] / scale @ coefficients
    return logit


def root_mean_square(features: FloatArray) -> FloatArray:
    """(P,) scale of every column about zero; 1 for a column of zeros."""
    scale = np.sqrt(np.mean(features**2, axis=0))
    return np.asarray(np.where(scale > 0, scale, 1.0))


def reliability(logit: FloatArray, a_won: npt.ArrayLike, bins: int = BINS) -> dict[str, Any]:
    """The calibration error of held-out log-odds, and its curve.

    Probabilities fall into bins of equal width; empty bins are left out. ece = sum over bins of
    share of battles * |mean probability - share that A won| (Naeini 2015).

    Returns:
        `ece` (NaN where a log-odds is NaN) and `reliability`, a list of
        `{"predicted", "observed", "n"}`: mean probability, share that A won, battles.
    """
    if np.isnan(logit).any():
        return {"ece": math.nan, "reliability": []}
    probability = expit(logit)
    frame = pd.DataFrame({"predicted": probability, "observed": np.asarray(a_won, np.float64)})
    groups = frame.groupby(np.minimum((probability * bins).astype(np.intp), bins - 1))
    curve: list[dict[str, Any]] = groups.mean().assign(n=groups.size()).to_dict("records")
    gaps = [point["n"] * abs(point["predicted"] - point["observed"]) for point in curve]
    return {"ece": sum(gaps) / len(logit), "reliability": curve}
