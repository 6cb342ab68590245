"""Measures of predictions against labels: the content of `metrics.json`, assembled here only.

An ensemble's report has the measures of its mean under `metrics`, and beside them:

- `members`: how many.
- `member_metrics`: per head, the mean of its members' own measures.
- `spread`: per head `scale` (see `fit_spread_scale`), `spearman` (the rank correlation of spread
  and absolute error over songs) and `coverage` (the share of songs within 2 scaled spreads).

Shape key: N = songs, M = members, H = heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_reward import metrics
from apex_reward.files.tables import write_json
from apex_reward.train.intervals import METRICS

FloatArray = npt.NDArray[np.float64]
HeadMetrics = dict[str, dict[str, float]]
MEASURES: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    name: getattr(metrics, name) for name in METRICS
}
COVERED = 0.95
# The least spread that a scale divides by, as a share of the median one.
LEAST_SPREAD = 1e-6


def metrics_report(
    about: Mapping[str, Any],
    members: FloatArray,
    labels: npt.ArrayLike,
    heads: Sequence[str],
    spread_scale: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The content of `metrics.json`: `about`, then `n_songs`, `metrics` and the spread's measures.

    Args:
        about: `mode`, `task`, `loss`, `shared`.
        members: (N, M, H) predictions; M is 1 for a single predictor.
        labels: (N, H).
        spread_scale: per head; None where it was not fitted.
    """
    true = np.asarray(labels, np.float64)
    mean = ensemble_mean(members)
    report = {**about, "n_songs": len(true), "metrics": head_metrics(mean, true, heads)}
    if members.shape[1] > 1:
        each = [head_metrics(member, true, heads) for member in np.moveaxis(members, 1, 0)]
        report["members"] = len(each)
        report["member_metrics"] = {
            head: {name: float(np.mean([one[head][name] for one in each])) for name in MEASURES}
            for head in heads
        }
        report["spread"] = spread_measures(members, true, heads, spread_scale)
    return report


def ensemble_mean(members: FloatArray) -> FloatArray:
    """(N, H) means of (N, M, H) predictions; a single predictor's own, to the last bit."""
    return members[:, 0] if members.shape[1] == 1 else members.mean(axis=1)


def head_metrics(pred: FloatArray, label: FloatArray, heads: Sequence[str]) -> HeadMetrics:
    """MSE, MAE, Pearson and Spearman per head of (N, H) predictions; NaN where undefined."""
    return {
        head: {name: measure(pred[:, i], label[:, i]) for name, measure in MEASURES.items()}
        for i, head in enumerate(heads)
    }


def spread_measures(
    members: FloatArray,
    labels: FloatArray,
    heads: Sequence[str],
    spread_scale: Sequence[float] | None,
) -> dict[str, dict[str, float | None]]:
    """How well the spread of (N, M, H) predictions tells the error; see the module's text."""
    errors, spread = np.abs(members.mean(axis=1) - labels), members.std(axis=1)
    found: dict[str, dict[str, float | None]] = {}
    for i, head in enumerate(heads):
        scale = None if spread_scale is None else spread_scale[i]
        inside = None if scale is None else errors[:, i] <= 2 * scale * spread[:, i]
        found[head] = {
            "scale": scale,
            "spearman": metrics.spearman(spread[:, i], errors[:, i]),
            "coverage": None if inside is None else float(inside.mean()),
        }
    return found


def fit_spread_scale(members: FloatArray, labels: npt.ArrayLike) -> list[float]:
    """Per head, what 2 spreads must be multiplied by to hold 95% of held-out songs.

    The quantile of |error| / (2 spread) at the rank that split conformal prediction takes, ceil of
    0.95 (N + 1) (Lei et al. 2018, "Distribution-free predictive inference for regression", with
    the spread as the local scale). At most the largest ratio.

    Args:
        members: (N, M, H) predictions of songs that no member trained on.
        labels: (N, H).
    """
    errors = np.abs(members.mean(axis=1) - np.asarray(labels, np.float64))
    spread = members.std(axis=1)
    least = np.maximum(LEAST_SPREAD * np.median(spread, axis=0), np.finfo(np.float64).tiny)
    ratios = np.sort(errors / (2 * np.maximum(spread, least)), axis=0)
    rank = min(math.ceil(COVERED * (len(ratios) + 1)), len(ratios))
    return [float(value) for value in ratios[rank - 1]]


def write_report(output: Path, report: Mapping[str, Any]) -> None:
    """`metrics.json`; an undefined measure (a constant input) is null."""
    write_json(output / "metrics.json", _nan_to_none(report))


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
