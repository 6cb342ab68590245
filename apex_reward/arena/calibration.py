"""Calibration: P(A wins) = sigmoid(slope * (a - b) + bias[system_a] - bias[system_b]).

Antisymmetric by construction: everything is a difference and there is no constant. Several scores
get a slope each, and with song embeddings there is a weight for each dimension. One Gaussian prior
(L2) holds all coefficients; features are scaled to unit mean square, the embedding as a whole to
the size of one feature. The strength of the prior is chosen in folds that keep a prompt together
where prompts are given.

Shape key: N = battles, M = scores, Y = systems, W = embedding width, P = M + Y + W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apex_reward.arena.agreement import system_features
from apex_reward.arena.battles import Battles
from apex_reward.arena.logistic import choose_l2, fit_logistic
from apex_reward.arena.reliability import root_mean_square
from apex_reward.metrics import FloatArray, IntArray


@dataclass(frozen=True)
class Design:
    """Features of decided battles, all differences.

    Attributes:
        scores: (N, M) score of A minus score of B.
        systems: (N, Y) +1 for A's system, -1 for B's.
        embeddings: (N, W) embedding of A minus embedding of B; W is 0 without embeddings.
        label: (N,) 1 where A won.
        groups: (N,) prompt of each battle, or the battle itself.
    """

    names: tuple[str, ...]
    system_names: tuple[str, ...]
    scores: FloatArray
    systems: FloatArray
    embeddings: FloatArray
    label: FloatArray
    groups: IntArray

    def select(self, rows: IntArray) -> Design:
        """The battles of some rows."""
        return Design(
            self.names,
            self.system_names,
            self.scores[rows],
            self.systems[rows],
            self.embeddings[rows],
            self.label[rows],
            self.groups[rows],
        )

    def uncalibrated(self, scale: FloatArray) -> FloatArray:
        """(N,) the score difference itself; of several, the sum of differences over `scale`."""
        return np.asarray(
            self.scores[:, 0] if len(self.names) == 1 else (self.scores / scale).sum(1)
        )


@dataclass(frozen=True)
class Calibration:
    """Fitted coefficients, per unit of each score, in log-odds.

    Attributes:
        slopes: score name -> log-odds per unit of its difference.
        biases: system -> log-odds; they sum to zero, as their features do.
        embedding_weights: (W,) or None.
        l2: strength of the prior on the scaled features.
    """

    slopes: dict[str, float]
    biases: dict[str, float]
    embedding_weights: tuple[float, ...] | None
    l2: float

    def song_logit(self, design: Design) -> FloatArray:
        """(N,) log-odds from the songs alone: scores and embeddings."""
        logit = design.scores @ np.array([self.slopes[name] for name in design.names])
        if self.embedding_weights is not None:
            logit = logit + design.embeddings @ np.array(self.embedding_weights)
        return np.asarray(logit)

    def logit(self, design: Design) -> FloatArray:
        """(N,) log-odds that A wins, the systems included; an unseen system has bias 0."""
        biases = np.array([self.biases.get(name, 0.0) for name in design.system_names])
        return self.song_logit(design) + design.systems @ biases


def design_of(
    decided: Battles, names: Sequence[str], embeddings: FloatArray | None = None
) -> Design:
    """Features of decided battles that have every score; `embeddings` is (N, 2, W) of A and B."""
    systems, system_names = system_features(decided)
    width = 0 if embeddings is None else embeddings.shape[2]
    return Design(
        names=tuple(names),
        system_names=tuple(system_names),
        scores=np.stack([decided.difference(name) for name in names], axis=1),
        systems=systems,
        embeddings=(
            np.zeros((len(decided), width))
            if embeddings is None
            else embeddings[:, 0] - embeddings[:, 1]
        ),
        label=decided.a_won.astype(np.float64),
        groups=decided.clusters,
    )


def fit_calibration(design: Design, *, l2: float | None = None, seed: int = 0) -> Calibration:
    """Fit slopes, biases and embedding weights together; `l2` None: chosen in grouped folds."""
    width = design.embeddings.shape[1]
    score_scale = root_mean_square(design.scores)
    embedding_scale = root_mean_square(design.embeddings) * math.sqrt(max(width, 1))
    features = np.hstack(
        [design.scores / score_scale, design.systems, design.embeddings / embedding_scale]
    )
    if l2 is None:
        l2 = choose_l2(features, design.label, design.groups, seed=seed)
    coefficients = fit_logistic(features, design.label, l2)
    slopes, biases, weights = np.split(
        coefficients, [len(design.names), len(design.names) + len(design.system_names)]
    )
    return Calibration(
        slopes=dict(zip(design.names, (slopes / score_scale).tolist(), strict=True)),
        biases=dict(zip(design.system_names, biases.tolist(), strict=True)),
        embedding_weights=tuple((weights / embedding_scale).tolist()) if width else None,
        l2=l2,
    )


def fit_systems(design: Design, *, seed: int = 0) -> FloatArray:
    """(Y,) strengths of the systems alone, the prior chosen as for a calibration."""
    l2 = choose_l2(design.systems, design.label, design.groups, seed=seed)
    return fit_logistic(design.systems, design.label, l2)
