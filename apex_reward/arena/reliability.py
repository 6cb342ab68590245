"""Probabilities of votes that were held out, and how reliable they are.

Shape key: N = battles, P = features.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit

from apex_reward.arena.battles import BoolArray
from apex_reward.arena.logistic import fit_logistic, group_folds, splits
from apex_reward.arena.results import Bin, Reliability
from apex_reward.metrics import FloatArray, IntArray

FOLDS = 10
SLOPE_L2 = 1e-6  # next to none: keeps the slope finite where one value separates the votes


def held_out_probability(
    features: FloatArray, a_won: BoolArray, groups: IntArray, *, l2: float, seed: int
) -> FloatArray:
    """(N,) P(A wins), each battle predicted by a fit on the folds without its group.

    Features are scaled to unit mean square on the training folds. NaN where there is one group.
    """
    probability = np.full(len(a_won), math.nan)
    if len(np.unique(groups)) < 2:
        return probability
    label = a_won.astype(np.float64)
    for train, test in splits(group_folds(groups, FOLDS, seed)):
        scale = root_mean_square(features[train])
        coefficients = fit_logistic(features[train] / scale, label[train], l2)
        probability[test] = expit(features[test] / scale @ coefficients)
    return probability


def root_mean_square(features: FloatArray) -> FloatArray:
    """(P,) scale of every column about zero; 1 for a column of zeros."""
    scale = np.sqrt(np.mean(features**2, axis=0))
    return np.asarray(np.where(scale > 0, scale, 1.0))


def reliability(probability: FloatArray, a_won: BoolArray, bins: int = 10) -> Reliability:
    """The calibration error and its curve: (N,) probabilities in bins of equally many battles.

    ece = sum over bins of share of battles * |mean probability - share that A won| (Naeini 2015).
    """
    if np.isnan(probability).any():
        return Reliability(math.nan, ())
    order = np.argsort(probability, kind="stable")
    curve = tuple(
        Bin(float(probability[part].mean()), float(a_won[part].mean()), len(part))
        for part in np.array_split(order, bins)
        if len(part)
    )
    gaps = [point.n * abs(point.predicted - point.observed) for point in curve]
    return Reliability(sum(gaps) / len(order), curve)
