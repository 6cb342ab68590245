"""Which comparison teaches most: Bayesian logistic regression on the votes so far.

    P(first preferred) = sigmoid(w . x)        (Bradley and Terry 1952)

x holds the differences of all scores between the two songs, and where there are several pairs of
systems also who made them. w has a Gaussian prior; its posterior is Laplace's approximation. The
gain of a comparison is the mutual information of its vote and w (BALD, arXiv 1112.5745): high
where draws of the posterior disagree about the winner, low where the vote is known or a coin flip.

Shape key: N = comparisons, P = features, V = votes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import entr, expit

from apex_reward.arena.heldout import fit_logistic, root_mean_square
from apex_reward.listen.sources import Comparison
from apex_reward.metrics import FloatArray, IntArray

PRIOR = 1.0
"""Inverse variance of each weight; features have a mean square of 1."""
NODES = 16  # of the Gauss-Hermite quadrature over a posterior log-odds


def features_of(comparisons: Sequence[Comparison]) -> FloatArray:
    """(N, P) first song less second: scores, and systems where several pairs of them meet."""
    names = dict.fromkeys(name for item in comparisons for name in item.scores)
    columns = [
        [np.subtract(*item.scores.get(name, (0.0, 0.0))) for item in comparisons] for name in names
    ]
    pairs = [item.systems for item in comparisons]
    if len(set(pairs)) > 1:
        columns += [
            [float(a == system) - float(b == system) for a, b in pairs]
            for system in sorted({name for pair in pairs for name in pair})
        ]
    values = np.nan_to_num(np.array(columns, np.float64).reshape(len(columns), len(comparisons)).T)
    return np.asarray(values / root_mean_square(values))


def expected_gain(features: FloatArray, voted: IntArray, outcome: FloatArray) -> FloatArray:
    """(N,) information in nats that a vote on each comparison is expected to give about w.

    Args:
        features: (N, P), of mean square 1.
        voted: (V,) row numbers that were voted on; a row may come several times.
        outcome: (V,) 1 where the first song was preferred, 0 the second, 0.5 neither.
    """
    seen = features[voted]
    weights = fit_logistic(seen, outcome, PRIOR)
    certain = expit(seen @ weights)
    curvature = (seen * (certain * (1 - certain))[:, None]).T @ seen
    covariance = np.linalg.inv(curvature + PRIOR * np.eye(features.shape[1]))
    mean = features @ weights
    deviation = np.sqrt(np.einsum("np,pq,nq->n", features, covariance, features))
    nodes, share = np.polynomial.hermite_e.hermegauss(NODES)
    share = share / share.sum()
    probability = expit(mean[:, None] + deviation[:, None] * nodes)
    return np.asarray(_entropy(probability @ share) - _entropy(probability) @ share)


def _entropy(probability: FloatArray) -> FloatArray:
    """Of a coin, in nats."""
    return np.asarray(entr(probability) + entr(1 - probability))
