"""From play counts to popularity scores: pure functions.

score = 100 (p / 100)^alpha with alpha = ln 0.5 / ln 0.8, so that the 80th percentile scores 50
(APEX, arXiv 2605.03395).

Shape key: N = songs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from apex_reward.errors import UsageError

FloatArray = npt.NDArray[np.float64]
ALPHA = math.log(0.5) / math.log(0.8)  # about 3.106


def percentiles(counts: npt.ArrayLike) -> FloatArray:
    """Percentile rank of (N,) counts within themselves, in (0, 100]: 100 x average rank / N.

    >>> percentiles([5, 1, 5, 9]).tolist()
    [62.5, 25.0, 62.5, 100.0]
    """
    values = np.asarray(counts, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UsageError(f"counts of shape {values.shape}; expected (N,) finite numbers")
    return np.asarray(100.0 * stats.rankdata(values) / max(len(values), 1))


def popularity_scores(percentile: npt.ArrayLike) -> FloatArray:
    """Scores in [0, 100] of percentiles in [0, 100].

    >>> popularity_scores([80.0, 100.0]).round(12).tolist()
    [50.0, 100.0]
    """
    values = np.asarray(percentile, np.float64)
    if not ((values >= 0) & (values <= 100)).all():
        raise UsageError("percentiles outside [0, 100]; did you pass counts?")
    return np.asarray(100.0 * (values / 100.0) ** ALPHA)


def scores_of_counts(counts: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> FloatArray:
    """Popularity scores of (N,) counts.

    Args:
        groups: (N,) labels (platforms); percentiles are then taken within each group.
    """
    values = pd.Series(np.asarray(counts, np.float64))
    labels = np.zeros(len(values)) if groups is None else np.asarray(groups)
    own = values.groupby(labels)
    return np.asarray(own.transform(lambda part: popularity_scores(percentiles(part))))
