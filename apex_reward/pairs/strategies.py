"""Which candidate beats which: one small pure function per strategy.

Each takes the values of one prompt's candidates on the strategy's axes, the primary axis first,
and returns a matrix that is True where the row's candidate wins over the column's. They broadcast
over leading dimensions, so the same function handles thousands of prompts of one size at once.
Candidates with equal values are never put in a pair; where several share the extreme value, the
first in the given order stands for them. Higher is better on every axis.

Shape key: A = axes, N = candidates of one prompt, ... = prompts of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import numpy.typing as npt

from apex_reward.errors import UsageError

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
    """

    min_margin: float = 0.0
    top_k: int = 2
    quantile: float = 0.75
    thresholds: Sequence[float] = ()


def best_worst(values: Values, settings: StrategySettings) -> Wins:
    """The best against the worst on the primary axis: one pair, none where all are equal.

    Source: best-of-N against worst-of-N, as in TangoFlux (arXiv 2412.21037, CRPO).

    >>> best_worst(np.array([[1.0, 5.0, 3.0]]), StrategySettings()).nonzero()
    (array([1]), array([0]))
    """
    primary = values[..., 0, :]
    position = np.arange(primary.shape[-1])
    best = position == primary.argmax(axis=-1)[..., None]
    worst = position == primary.argmin(axis=-1)[..., None]
    return best[..., :, None] & worst[..., None, :] & (_differences(primary) > 0)


def all_pairs(values: Values, settings: StrategySettings) -> Wins:
    """Every ordered pair with at least `min_margin` between them on the primary axis.

    Source: the K-choose-2 comparisons of a ranking, as in InstructGPT (arXiv 2203.02155, 3.5).
    """
    return _ahead(_differences(values[..., 0, :]), settings.min_margin)


def top_bottom(values: Values, settings: StrategySettings) -> Wins:
    """Each of the `top_k` best against each of the `top_k` worst on the primary axis.

    A prompt of fewer than 2 k candidates uses the half of its size, rounded down. Source: top
    against bottom sets, as in NotaGen's CLaMP-DPO (arXiv 2502.18008).
    """
    primary = values[..., 0, :]
    size = primary.shape[-1]
    k = min(settings.top_k, size // 2)
    # Rank by value, equal ones by position; the first of equals counts as the better one.
    rank = np.argsort(np.argsort(-primary, axis=-1, kind="stable"), axis=-1, kind="stable")
    top, bottom = rank < k, rank >= size - k
    return top[..., :, None] & bottom[..., None, :] & (_differences(primary) > 0)


def margin(values: Values, settings: StrategySettings) -> Wins:
    """Pairs whose difference on the primary axis reaches a quantile of the prompt's differences.

    The margin adapts to how much a prompt's candidates differ. The quantile is taken, with linear
    interpolation, over the absolute differences of all unordered pairs. Source: the percentile
    margins of MR-FlowDPO (arXiv 2512.10264), on one axis.
    """
    difference = _differences(values[..., 0, :])
    return _ahead(difference, _quantile(difference, settings.quantile))


def mrsd(values: Values, settings: StrategySettings) -> Wins:
    """Multi-reward strong domination: far ahead on the primary axis, clearly ahead on the others.

    The chosen leads by the quantile `settings.quantile` (0.95) of the prompt's absolute
    differences on the primary axis and by the median one on every other axis. Source: MR-FlowDPO
    (arXiv 2512.10264), which pools the differences over all prompts; here they are the prompt's
    own, so that one prompt's pairs do not depend on the others.
    """
    wins = margin(values, settings)
    for axis in range(1, values.shape[-2]):
        difference = _differences(values[..., axis, :])
        wins &= difference >= _quantile(difference, MRSD_OTHER_QUANTILE)
    return wins


def pareto(values: Values, settings: StrategySettings) -> Wins:
    """At least as good on every axis, and better on one by `min_margin`.

    Source: Pareto dominance, as in multi-objective preference data (MO-DPO, arXiv 2310.03708).
    """
    difference = _differences(values)  # (..., A, N, N)
    no_worse: Wins = np.all(difference >= 0, axis=-3)
    better: Wins = np.any(_ahead(difference, settings.min_margin), axis=-3)
    return no_worse & better


def two_axis(values: Values, settings: StrategySettings) -> Wins:
    """The chosen reaches the thresholds of both axes, the rejected fails at least one.

    Source: threshold selection on two scores, as for the winners of Tango 2 (arXiv 2404.09956).
    """
    reaches: Wins = np.all(values >= np.asarray(settings.thresholds)[:, None], axis=-2)
    return reaches[..., :, None] & ~reaches[..., None, :]


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
    """The name and the function of a strategy.

    Args:
        given: a name in `STRATEGIES`, a function of your own with their signature, or where one
            lies, as `package.module:function`.

    Raises:
        UsageError: no such strategy.

    >>> find_strategy("all")[1] is all_pairs
    True
    """
    if callable(given):
        return getattr(given, "__name__", "custom"), given
    if given in STRATEGIES:
        return given, STRATEGIES[given]
    module, colon, name = given.partition(":")
    if not colon:
        raise UsageError(
            f"strategy {given!r} is not one of {', '.join(STRATEGIES)}, nor package.module:function"
        )
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"strategy {given}: {error}; expected package.module:function") from error
    return given, found


MARGIN_INSIDE = ("all", "pareto")
"""Strategies that apply `min_margin` themselves, as part of their definition."""


def _differences(values: Values) -> Values:
    """(..., N) to (..., N, N): the row's value less the column's."""
    return values[..., :, None] - values[..., None, :]


def _ahead(difference: Values, least: float | Values) -> Wins:
    return (difference >= least) & (difference > 0)


def _quantile(difference: Values, quantile: float) -> Values:
    """(..., N, N) to (..., 1, 1): a quantile of the absolute differences of unordered pairs."""
    size = difference.shape[-1]
    if size < 2:
        return np.zeros((*difference.shape[:-2], 1, 1))
    row, column = np.triu_indices(size, k=1)
    absolute = np.abs(difference[..., row, column])
    return np.quantile(absolute, quantile, axis=-1)[..., None, None]
