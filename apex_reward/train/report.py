"""Measures of predictions against labels, their intervals, and the card that states them.

Beside them the statistics of a model's training songs that its flag `unfamiliar` is measured by.

The content of `metrics.json` is made here only. An ensemble's report has the measures of its mean
under `metrics`, and beside them:

- `members`: their number.
- `member_metrics`: per head, the mean of the members' own measures.
- `spread`: per head `scale` (see `fit_spread_scale`), `spearman` (the rank correlation of spread
  and absolute error over songs) and `coverage` (the share of songs within 2 scaled spreads).

Shape key: N = songs, M = members, H = heads, R = rounds, W = embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf

from apex_reward import metrics
from apex_reward.files.tables import json_ready, write_json
from apex_reward.model.card import write_card
from apex_reward.model.predictor import Familiarity
from apex_reward.report.markdown import markdown_table

FloatArray = npt.NDArray[np.float64]
HeadMetrics = dict[str, dict[str, float]]
Interval = tuple[float, float]
METRICS = ("mse", "mae", "pearson", "spearman")
MEASURES: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    name: getattr(metrics, name) for name in METRICS
}
ROUNDS = 1000
COVERED = 0.95
SPEARMAN_VARIANCE = 1.06  # over N - 3, of Fisher's z
# The least spread that a scale divides by, as a share of the median one.
LEAST_SPREAD = 1e-6
FOLDS = 5
# Fewer held-out songs have no hundredth part; more do not move the figures.
LEAST_SONGS, MOST_SONGS = 100, 20_000
HELD_OUT_SHARE = 0.99


def metrics_report(
    about: Mapping[str, Any],
    members: FloatArray,
    labels: npt.ArrayLike,
    heads: Sequence[str],
    spread_scale: Sequence[float] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> dict[str, Any]:
    """The content of `metrics.json`: `about`, `n_songs`, `metrics`, the spread's, `ci95`.

    Args:
        about: `mode`, `task`, `loss`, `shared`.
        members: (N, M, H) predictions; M is 1 for a single predictor.
        labels: (N, H).
        spread_scale: per head; None where it was not fitted.
        rounds, seed: of the bootstrap, see `measure_intervals`.
    """
    true = np.asarray(labels, np.float64)
    mean = members.mean(axis=1)
    report = {**about, "n_songs": len(true), "metrics": head_metrics(mean, true, heads)}
    if members.shape[1] > 1:
        each = [head_metrics(member, true, heads) for member in np.moveaxis(members, 1, 0)]
        report["members"] = len(each)
        report["member_metrics"] = {
            head: {name: float(np.mean([one[head][name] for one in each])) for name in MEASURES}
            for head in heads
        }
        report["spread"] = spread_measures(members, true, heads, spread_scale)
    report["ci95"] = measure_intervals(mean, true, heads, rounds, seed)
    return report


def head_metrics(pred: FloatArray, label: FloatArray, heads: Sequence[str]) -> HeadMetrics:
    """MSE, MAE, Pearson and Spearman per head of (N, H) predictions; NaN where undefined."""
    return {
        head: {name: measure(pred[:, i], label[:, i]) for name, measure in MEASURES.items()}
        for i, head in enumerate(heads)
    }


def measure_intervals(
    pred: npt.ArrayLike, label: npt.ArrayLike, heads: Sequence[str], rounds: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """95% intervals of the four measures per head of (N, H) predictions, over songs.

    The hull of the percentile bootstrap and of the textbook interval: Student's t for the mean
    errors, Fisher's z for the correlations (with the variance 1.06 / (N - 3) of Fieller, Hartley
    and Pearson 1957 for Spearman's). NaN where the data cannot tell: fewer than four songs, equal
    errors, a correlation of 1, `rounds` of 0.
    """
    x, y = np.asarray(pred, np.float64), np.asarray(label, np.float64)
    n = len(x)
    found: dict[str, dict[str, Interval]] = {}
    for head, a, b in zip(heads, x.T, y.T, strict=True):
        around = {"mse": _around_mean((a - b) ** 2), "mae": _around_mean(np.abs(a - b))}
        for name, factor in (("pearson", 1.0), ("spearman", SPEARMAN_VARIANCE)):
            around[name] = correlation_interval(MEASURES[name](a, b), n, factor)
        drawn = metrics.bootstrap(partial(_resampled, a, b), n, rounds=rounds, seed=seed)
        found[head] = {}
        for i, name in enumerate(METRICS):  # the hull; NaN unless both ends are known
            low, high = metrics.percentile_interval(drawn[:, i] if rounds else [])
            least, most = np.minimum(low, around[name][0]), np.maximum(high, around[name][1])
            found[head][name] = float(least), float(most)
    return found


def _resampled(a: FloatArray, b: FloatArray, counts: FloatArray) -> FloatArray:
    """(R, 4) measures of (n,) predictions and labels that occur `counts` (R, n) times."""
    numbers = np.tile(np.arange(len(a)), len(counts))
    rows = np.repeat(numbers, counts.astype(np.intp).ravel()).reshape(counts.shape)
    x, y = a[rows], b[rows]
    ranks = (stats.rankdata(values, axis=1) for values in (x, y))
    errors = ((x - y) ** 2).mean(axis=1), np.abs(x - y).mean(axis=1)
    return np.stack([*errors, _correlations(x, y), _correlations(*ranks)], axis=1)


def _correlations(x: FloatArray, y: FloatArray) -> FloatArray:
    """(R,) Pearson correlations of (R, n) inputs; NaN where one is constant."""
    # Compared as given: equal floats less their mean need not be zero.
    varied = (np.ptp(x, axis=1) > 0) & (np.ptp(y, axis=1) > 0)
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.where(varied, found, np.nan)


def _around_mean(values: FloatArray) -> Interval:
    if len(values) < 4 or np.ptp(values) == 0:
        return math.nan, math.nan
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return max(0.0, float(low)), float(high)


def correlation_interval(value: float, n: int, factor: float) -> Interval:
    """Fisher's 95% interval of a correlation of n songs; NaN below four, and at -1 and 1."""
    if n < 4 or math.isnan(value) or abs(value) > 1 - 1e-12:
        return math.nan, math.nan
    middle, deviation = math.atanh(value), math.sqrt(factor / (n - 3))
    low, high = np.tanh(stats.norm.interval(0.95, middle, deviation))
    return float(low), float(high)


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
        found[head] = {"scale": None, "spearman": metrics.spearman(spread[:, i], errors[:, i])}
        found[head]["coverage"] = None
        if spread_scale is not None:
            inside = errors[:, i] <= 2 * spread_scale[i] * spread[:, i]
            found[head] |= {"scale": spread_scale[i], "coverage": float(inside.mean())}
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
    write_json(output / "metrics.json", json_ready(report))


def write_trained_card(
    folder: Path,
    songs: Mapping[str, int],
    report: Mapping[str, Any],
    how: Sequence[tuple[str, Any]] = (),
) -> None:
    """Write the card of a trained model.

    Args:
        folder: of the model.
        songs: number of songs of the splits `train`, `val` and `test`.
        report: the content of `metrics.json`.
        how: further rows on how it was trained.
    """
    names = {"train": "trained on", "val": "chosen on", "test": "measured on"}
    rows: list[tuple[str, Any]] = [(t, f"{songs[split]:,} songs") for split, t in names.items()]
    rows += [(name, report[name]) for name in ("mode", "loss", "task", "members") if name in report]
    training = markdown_table(("training", "was"), [(n, str(v)) for n, v in (*rows, *how)])
    columns = {name: {h: row[name] for h, row in report["metrics"].items()} for name in METRICS}
    note = (
        f"Measured on the {report['n_songs']:,} songs of the test split, which come from the same "
        "source as the training songs; other music may be judged worse. Errors are in points of "
        "the head."
    )
    if spread := report.get("spread"):
        columns["spread and error"] = {head: row["spearman"] for head, row in spread.items()}
        columns["covered"] = {head: row["coverage"] for head, row in spread.items()}
        note += (
            " `spread and error` is the rank correlation of the members' spread with the error; "
            "`covered` is the share of songs within two spreads of the mean."
        )
    measured = [(head, *(c[head] for c in columns.values())) for head in report["metrics"]]
    figures = markdown_table(("head", *columns), measured)
    write_card(folder, [f"## Data\n\n{training}", f"## Measured\n\n{note}\n\n{figures}"])


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
