"""What training songs look like in embedding space: the statistics behind `unfamiliar`.

Shape key: N = songs, W = embedding width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import LedoitWolf

from apex_reward.model.predictor import Familiarity

FOLDS = 5
# Fewer held-out songs have no hundredth part; more do not move the figures.
LEAST_SONGS, MOST_SONGS = 100, 20_000
HELD_OUT_SHARE = 0.99


def fit_familiarity(embeddings: npt.NDArray[Any]) -> Familiarity | None:
    """Mean, shrunk covariance and threshold of training songs (N, W).

    The covariance is shrunk as Ledoit and Wolf (2004) do, so that it can be inverted with fewer
    songs than dimensions. The threshold is from the distances of songs that were held out (each
    fifth of the songs from the statistics of the other four): the ceil(0.99 (N + 1))-th smallest,
    which about 1% of further songs exceed (Vovk et al. 2005, whose bound is exact for one held-out
    set), but never the largest, which a single odd song would set: the second largest of N is
    exceeded by 2 / (N + 1) of further songs on average, less than 2% from 100 songs on.

    Returns:
        None for fewer than 100 songs, or where all embeddings are alike.
    """
    x = embeddings[:: math.ceil(len(embeddings) / MOST_SONGS)].astype(np.float64)
    if len(x) < LEAST_SONGS or np.ptp(x, axis=0).max() == 0:
        return None
    fold = np.arange(len(x)) % FOLDS
    distances = np.empty(len(x))
    for number in range(FOLDS):
        mean, whitening = _statistics(x[fold != number])
        held_out = fold == number
        distances[held_out] = np.linalg.norm((x[held_out] - mean) @ whitening, axis=1)
    mean, whitening = _statistics(x)
    rank = min(math.ceil(HELD_OUT_SHARE * (len(x) + 1)), len(x) - 1)
    threshold = np.sort(distances)[rank - 1]
    familiar = Familiarity(x.shape[1])
    familiar.load_state_dict(
        {
            "mean": torch.from_numpy(mean).float(),
            "whitening": torch.from_numpy(whitening).float(),
            "threshold": torch.tensor(threshold, dtype=torch.float32),
        }
    )
    return familiar


def _statistics(x: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Mean (W,), and (W, W) whose product with its transpose inverts the shrunk covariance."""
    fitted = LedoitWolf().fit(x)
    return fitted.location_, np.linalg.cholesky(fitted.precision_)
