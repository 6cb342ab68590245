"""The options of the pair builder, checked together before any file is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from apex_reward.errors import UsageError

DEFAULT_AXIS = "musicality"
DEFAULT_TOP_K = 2
DEFAULT_QUANTILE = {"margin": 0.75, "mrsd": 0.95}
READERS = {
    "top_k": ("top-bottom",),
    "quantile": ("margin", "mrsd"),
    "threshold": ("two-axis",),
    "axes": ("mrsd", "pareto", "two-axis"),
}
"""The strategies that read an option; a function that is not one of them may read every option."""
LIMITS = {
    ("min_margin", "match_duration", "match_loudness", "protect"): (
        0, math.inf, "a finite number of at least 0"
    ),
    ("threshold",): (-math.inf, math.inf, "a finite number"),
    ("top_k", "max_pairs_per_prompt", "max_pairs_per_candidate"): (1, math.inf, "at least 1"),
    ("quantile", "min_agreement"): (0, 1, "a share between 0 and 1"),
    ("test_share",): (0, math.nextafter(1, 0), "0 or more and below 1"),
}  # fmt: skip
"""What the numbers of options may be: the least, the most, and both in words."""


def parse_bound(given: float | str) -> tuple[float, bool]:
    """A floor or a ceiling: its number, and whether this is a quantile over all candidates.

    Raises:
        UsageError: neither a number nor `q` and a share.

    >>> parse_bound(3.5), parse_bound("q0.8")
    ((3.5, False), (0.8, True))
    """
    text = str(given).strip()
    is_quantile = text.startswith("q")
    try:
        value = float(text.removeprefix("q"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (is_quantile and not 0 <= value <= 1):
        raise UsageError(f"{text!r}: expected a number, or q0.8 for the quantile 0.8")
    return value, is_quantile


@dataclass(frozen=True)
class PairOptions:
    """How pairs are chosen. The command line has the same options and defaults.

    Args:
        strategy: best-worst, all, top-bottom, margin, mrsd, pareto, two-axis, a function like them,
            or package.module:function.
        axis: the primary axis: a numeric column, or a mix of heads (`musicality=1,clarity=0.5`, or
            a named mix such as `overall`). None: the first of --axes, else of --threshold, else
            musicality.
        axes: the other axes of `mrsd`, `pareto` and `two-axis`.
        min_margin: smallest difference on the primary axis; in `pareto`, on the deciding axis.
        min_agreement: smallest share of an ensemble's members, in [0, 1], that put the chosen above
            the rejected on the primary axis.
        top_k: candidates on each side of `top-bottom`. None: 2.
        quantile: quantile of the differences within a prompt, in [0, 1]. None: 0.75 for margin,
            0.95 for the primary axis of mrsd, the median for its others.
        threshold: smallest value of the chosen on an axis; `two-axis` needs exactly two.
        protect: largest loss of the chosen against the rejected on an axis.
        chosen_floor: smallest primary axis of the chosen: a value, or a quantile such as `q0.8`.
        rejected_ceiling: largest primary axis of the rejected: a value, or a quantile such as
            `q0.2`.
        match_duration: largest difference of length within a pair, in seconds.
        match_loudness: largest difference of integrated loudness within a pair, in LU. Loudness
            that is not in the table is measured.
        drop_flags: candidates with any of these flags are dropped.
        balance: rulers that the set becomes neutral in, such as `length,loudness`: the chosen song
            has more of it in as many pairs as it has less.
        balance_axes: keep the same number of pairs for each axis that decides pairs.
        max_pairs_per_prompt: keep the pairs of each prompt with the largest margins.
        max_pairs_per_candidate: keep the pairs of each candidate with the largest margins.
        test_share: share of the pairs in the split `test`, in [0, 1).
        seed: random seed of the split.

    Raises:
        UsageError: listing every impossible or contradictory choice at once.
    """

    strategy: Annotated[str | Callable[..., Any], "NAME"] = "best-worst"
    axis: Annotated[str | None, "NAME"] = None
    axes: Sequence[str] = ()
    min_margin: float = 0.0
    min_agreement: Annotated[float | None, "SHARE"] = None
    top_k: Annotated[int | None, "K"] = None
    quantile: Annotated[float | None, "Q"] = None
    threshold: Mapping[str, float] = field(default_factory=dict)
    protect: Annotated[Mapping[str, float], "NAME=TOLERANCE"] = field(default_factory=dict)
    chosen_floor: Annotated[float | str | None, "X"] = None
    rejected_ceiling: Annotated[float | str | None, "X"] = None
    match_duration: Annotated[float | None, "SECONDS"] = None
    match_loudness: Annotated[float | None, "DB"] = None
    drop_flags: Sequence[str] = ()
    balance: Annotated[Sequence[str], "RULER,..."] = ()
    balance_axes: bool = False
    max_pairs_per_prompt: int | None = None
    max_pairs_per_candidate: int | None = None
    test_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*_strategy_problems(self), *_number_problems(self)]
        if self.balance_axes and len(self.strategy_axes) < 2:
            problems.append("--balance-axes needs a second axis: give --axes or --threshold")
        if problems:
            listing = "\n".join(f"  - {problem}" for problem in problems)
            raise UsageError(f"these options do not work together:\n{listing}")

    @property
    def strategy_name(self) -> str:
        """The strategy's name in rows and reports."""
        from apex_reward.pairs.strategies import find_strategy  # it loads numpy

        return find_strategy(self.strategy)[0]

    @property
    def primary(self) -> str:
        """The axis that margins are measured on."""
        return self.axis or next(iter((*self.axes, *self.threshold)), DEFAULT_AXIS)

    @property
    def strategy_axes(self) -> tuple[str, ...]:
        """The axes a strategy looks at, the primary one first."""
        return tuple(dict.fromkeys((self.primary, *self.axes, *self.threshold)))

    @property
    def involved(self) -> tuple[str, ...]:
        """Every axis that decides something: a candidate needs a value on each."""
        return tuple(dict.fromkeys((*self.strategy_axes, *self.protect)))

    @property
    def ruler_names(self) -> tuple[str, ...]:
        """The rulers of `balance`, without `rulers.` before them."""
        return tuple(name.removeprefix("rulers.") for name in self.balance)


def _strategy_problems(options: PairOptions) -> list[str]:
    from apex_reward.pairs.strategies import STRATEGIES  # it loads numpy

    try:
        name = options.strategy_name
    except UsageError as error:
        return [str(error)]
    problems = [
        f"--{option.replace('_', '-')} is read by {' and '.join(readers)} only, not by {name}"
        for option, readers in READERS.items()
        if name in STRATEGIES and name not in readers
        if getattr(options, option) not in (None, (), [], {})
    ]
    if name == "two-axis" and len(options.threshold) != 2:
        given = len(options.threshold)
        problems.append(f"two-axis needs --threshold NAME=X twice, once per axis; {given} given")
    return problems


def _number_problems(options: PairOptions) -> list[str]:
    problems = []
    limits = {name: limit for names, limit in LIMITS.items() for name in names}
    for name, (low, high, wanted) in limits.items():
        given = getattr(options, name)
        for axis, value in given.items() if isinstance(given, Mapping) else (("", given),):
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                option = f"{name.replace('_', '-')} {axis}".strip()
                problems.append(f"--{option} is {value}; expected {wanted}")
    for name in ("chosen_floor", "rejected_ceiling"):
        try:
            parse_bound(getattr(options, name) or 0.0)
        except UsageError as error:
            problems.append(f"--{name.replace('_', '-')} {error}")
    return problems
