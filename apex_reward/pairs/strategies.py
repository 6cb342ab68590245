"""Which candidate beats which: one small pure function per strategy.

Each takes the values of one prompt's candidates on the strategy's axes, the primary axis first,
and returns a matrix that is True where the row's candidate wins over the column's. It chooses among
the pairs that `settings.may` allows. The functions broadcast over leading dimensions, so one call
handles thousands of prompts of one size. Candidates with equal values are never put in a pair;
where several share the extreme value, the first in the given order stands for them. Higher is
better on every axis.

Shape key: A = axes, N = candidates of one prompt, ... = prompts of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apex_reward.errors import UsageError, named

Values = npt.NDArray[np.float64]
Wins = npt.NDArray[np.bool_]

MRSD_OTHER_QUANTILE = 0.5


@dataclass(frozen=True)
class StrategySettings:
    """What the strategies read, each its own part.

    Args:
        min_margin: for `all` and `pareto`.
        top_k: for `top-bottom`.
        quantile: in [0, 1], for `margin` and the primary axis of `mrsd`.
        thresholds: for `two-axis`, a value per axis; -inf where the axis has none.
        may: (..., N, N), True where the row's candidate may be chosen over the column's. None:
            every pair is allowed.
    """

    min_margin: float = 0.0
    top_k: int = 2
    quantile: float = 0.75
    thresholds: Sequence[float] = ()
    may: Wins | None = None


def best_worst(values: Values, settings: StrategySettings) -> Wins:
    """The allowed pair with the largest lead on the primary axis; none where no song leads.

    Without constraints it is the best against the worst. Source: best-of-N against worst-of-N, as
    in TangoFlux (arXiv 2412.21037, CRPO).

    >>> best_worst(np.array([[1.0, 5.0, 3.0]]), StrategySettings()).nonzero()
    (array([1]), array([0]))
    """
    difference = _differences(values[..., 0, :])
    possible = _allowed(difference > 0, settings)
    cells = np.where(possible, difference, 0.0).reshape(*difference.shape[:-2], -1)
    widest = np.arange(cells.shape[-1]) == cells.argmax(axis=-1)[..., None]
    wins: Wins = widest.reshape(difference.shape) & possible
    return wins


def all_pairs(values: Values, settings: StrategySettings) -> Wins:
    """Every ordered pair with at least `min_margin` between them on the primary axis.

    Source: the K-choose-2 comparisons of a ranking, as in InstructGPT (arXiv 2203.02155, 3.5).
    """
    return _allowed(_ahead(_differences(values[..., 0, :]), settings.min_margin), settings)


def top_bottom(values: Values, settings: StrategySettings) -> Wins:
    """Each of the `top_k` best against each of the `top_k` worst on the primary axis.

    The chosen is one of the k best songs that may be chosen over the rejected, and the rejected is
    one of the k worst that it may be chosen over. A prompt of fewer than 2 k candidates uses the
    half of its size, rounded down. Source: top against bottom sets, as in NotaGen's CLaMP-DPO
    (arXiv 2502.18008).
    """
    primary = values[..., 0, :]
    k = min(settings.top_k, primary.shape[-1] // 2)
    # From the best to the worst; of equal values the first counts as the better one.
    order = np.argsort(-primary, axis=-1, kind="stable")
    possible = _reordered(_allowed(_differences(primary) > 0, settings), order)
    best = np.cumsum(possible, axis=-2) <= k
    worst = np.cumsum(possible[..., ::-1], axis=-1)[..., ::-1] <= k
    return _reordered(possible & best & worst, np.argsort(order, axis=-1, kind="stable"))


def margin(values: Values, settings: StrategySettings) -> Wins:
    """Pairs whose difference on the primary axis reaches a quantile of the prompt's differences.

    The margin adapts to how much a prompt's candidates differ. The quantile is taken, with linear
    interpolation, over the absolute differences of the allowed unordered pairs. Source: the
    percentile margins of MR-FlowDPO (arXiv 2512.10264), on one axis.
    """
    difference = _differences(values[..., 0, :])
    allowed = _allowed(difference >= 0, settings)
    least = _quantile(difference, allowed, settings.quantile)
    return _allowed(_ahead(difference, least), settings)


def mrsd(values: Values, settings: StrategySettings) -> Wins:
    """Multi-reward strong domination: far ahead on the primary axis, clearly ahead on the others.

    The chosen leads by the quantile `settings.quantile` (0.95) of the prompt's absolute
    differences on the primary axis and by the median one on every other axis. Source: MR-FlowDPO
    (arXiv 2512.10264), which pools the differences over all prompts; here they are the prompt's
    own, so that one prompt's pairs do not depend on the others.
    """
    wins = margin(values, settings)
    allowed = _allowed(_differences(values[..., 0, :]) >= 0, settings)
    for axis in range(1, values.shape[-2]):
        difference = _differences(values[..., axis, :])
        wins &= difference >= _quantile(difference, allowed, MRSD_OTHER_QUANTILE)
    return wins


def pareto(values: Values, settings: StrategySettings) -> Wins:
    """At least as good on every axis, and better on one by `min_margin`.

    Source: Pareto dominance, as in multi-objective preference data (MO-DPO, arXiv 2310.03708).
    """
    difference = _differences(values)  # (..., A, N, N)
    no_worse: Wins = np.all(difference >= 0, axis=-3)
    better: Wins = np.any(_ahead(difference, settings.min_margin), axis=-3)
    return _allowed(no_worse & better, settings)


def two_axis(values: Values, settings: StrategySettings) -> Wins:
    """The chosen reaches the thresholds of both axes, the rejected fails at least one.

    Source: threshold selection on two scores, as for the winners of Tango 2 (arXiv 2404.09956).
    """
    reaches: Wins = np.all(values >= np.asarray(settings.thresholds)[:, None], axis=-2)
    return _allowed(reaches[..., :, None] & ~reaches[..., None, :], settings)


Strategy = Callable[[Values, StrategySettings], Wins]
STRATEGIES: dict[str, Strategy] = {
    "best-worst": best_worst,
    "all": all_pairs,
    "top-bottom": top_bottom,
    "margin": margin,
    "mrsd": mrsd,
    "pareto": pareto,
    "two-axis": two_axis,
}


def find_strategy(given: str | Strategy) -> tuple[str, Strategy]:
    """The name and the function of a strategy; a function of `STRATEGIES` has its name there.

    Args:
        given: a name in `STRATEGIES`, a function with their signature, or the place of one, as
            `package.module:function`.

    Raises:
        UsageError: no such strategy.

    >>> find_strategy("all")[1] is all_pairs
    True
    """
    if given in STRATEGIES:
        return str(given), STRATEGIES[str(given)]
    name, function = getattr(given, "__name__", "custom"), given
    if isinstance(given, str):
        if ":" not in given:
            raise UsageError(
                f"strategy {given!r} is not one of {', '.join(STRATEGIES)}, "
                "nor package.module:function"
            )
        name, function = given, named(given, "function")
    own = (known for known, strategy in STRATEGIES.items() if strategy is function)
    return next(own, name), function  # type: ignore[return-value]


MARGIN_INSIDE = ("all", "pareto")
"""Strategies that apply `min_margin` themselves, as part of their definition."""


def _differences(values: Values) -> Values:
    """(..., N) to (..., N, N): the row's value less the column's."""
    return values[..., :, None] - values[..., None, :]


def _ahead(difference: Values, least: float | Values) -> Wins:
    return (difference >= least) & (difference > 0)


def _allowed(wins: Wins, settings: StrategySettings) -> Wins:
    return wins if settings.may is None else wins & settings.may


def _reordered(pairs: Wins, order: npt.NDArray[np.int64]) -> Wins:
    """(..., N, N) with rows and columns in an order (..., N)."""
    rows = np.take_along_axis(pairs, order[..., :, None], axis=-2)
    return np.take_along_axis(rows, order[..., None, :], axis=-1)


def _quantile(difference: Values, allowed: Wins, quantile: float) -> Values:
    """(..., N, N) to (..., 1, 1): a quantile of the absolute differences of unordered pairs.

    Args:
        allowed: a pair counts where either order of it is allowed. Without any the quantile is 0.
    """
    row, column = np.triu_indices(difference.shape[-1], k=1)
    counts = (allowed | np.swapaxes(allowed, -1, -2))[..., row, column]
    if not counts.size:
        return np.zeros((*difference.shape[:-2], 1, 1))
    ordered = np.sort(np.where(counts, np.abs(difference[..., row, column]), np.inf), axis=-1)
    last = np.maximum(counts.sum(axis=-1, keepdims=True) - 1, 0)
    place = quantile * last
    below = np.floor(place).astype(np.int64)
    low = np.take_along_axis(ordered, below, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(below + 1, last), axis=-1)
    found = np.where(np.isfinite(low), low, 0.0)
    found += (place - below) * (np.where(np.isfinite(high), high, 0.0) - found)
    return found[..., None]
