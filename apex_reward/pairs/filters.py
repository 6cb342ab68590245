"""Filters: which candidates may be paired, and which proposed pairs are kept.

Pair filters are pure functions over arrays that return True for the pairs to keep; their bounds
are inclusive.

Shape key: M = pairs, N = candidates, A = axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_reward.pairs.axes import Floats
from apex_reward.pairs.candidates import Candidates, Integers
from apex_reward.pairs.ledger import Ledger, Mask
from apex_reward.pairs.options import Bound, PairOptions
from apex_reward.pairs.strategies import MARGIN_INSIDE

Positions = npt.NDArray[np.int64]


def drop_unusable(candidates: Candidates, options: PairOptions, ledger: Ledger) -> None:
    """Drop the candidates that cannot be in a pair whatever the others are."""
    ledger.drop(~candidates.has_prompt, "no prompt")
    _drop_values(candidates.column("audio"), ledger, lambda audio: "" if audio else "no audio path")
    _drop_values(candidates.column("error"), ledger, lambda e: f"not scored: {e}" if e else "")
    for axis in options.involved:
        ledger.drop(~np.isfinite(candidates.axes[axis]), f"no {axis}")
    unwanted = set(options.drop_flags)
    if unwanted:
        _drop_values(candidates.column("flags"), ledger, lambda f: _flag_reason(f, unwanted))


def drop_repeats(candidates: Candidates, ledger: Ledger) -> None:
    """Drop what lists the same file twice for one prompt, keeping the first."""
    audio = candidates.table["audio"].to_pylist()
    prompt, still = candidates.prompt, ledger.open
    previous = -1
    for position in np.flatnonzero(still).tolist():
        if (
            previous >= 0
            and prompt[position] == prompt[previous]
            and audio[position] == audio[previous]
        ):
            ledger.drop_one(position, "duplicate audio: the same file is listed twice")
        else:
            previous = position


def drop_lonely(candidates: Candidates, ledger: Ledger) -> None:
    """Drop the only usable candidate of a prompt: there is nothing to pair it with."""
    usable = np.bincount(candidates.prompt[ledger.open], minlength=len(candidates))
    ledger.drop(usable[candidates.prompt] == 1, "only usable candidate of its prompt")


@dataclass(frozen=True)
class PairFilter:
    """One filter over proposed pairs: `keep(chosen, rejected)` is True for the pairs that stay."""

    reason: str
    keep: Callable[[Positions, Positions], Mask]


def pair_filters(candidates: Candidates, options: PairOptions, usable: Mask) -> list[PairFilter]:
    """The filters that the options ask for, in the order in which they apply."""
    primary = candidates.axes[options.primary]
    filters = []
    # A pair of `two-axis` may be decided by the other axis; a margin holds only where asked for.
    if options.strategy not in MARGIN_INSIDE and options.min_margin > 0:
        filters.append(
            PairFilter(
                f"margin below {options.min_margin:g}",
                lambda w, low: primary[w] - primary[low] >= options.min_margin,
            )
        )
    members = candidates.members
    if options.min_agreement is not None and members is not None:
        least = options.min_agreement
        filters.append(
            PairFilter(
                f"agreement below {least:g}", lambda w, low: agreement(members, w, low) >= least
            )
        )
    if options.chosen_floor is not None:
        floor = bound_value(options.chosen_floor, primary[usable])
        filters.append(
            PairFilter(
                f"chosen below the floor {_named(options.chosen_floor, floor)}",
                lambda w, low: primary[w] >= floor,
            )
        )
    if options.rejected_ceiling is not None:
        ceiling = bound_value(options.rejected_ceiling, primary[usable])
        filters.append(
            PairFilter(
                f"rejected above the ceiling {_named(options.rejected_ceiling, ceiling)}",
                lambda w, low: primary[low] <= ceiling,
            )
        )
    for axis, tolerance in options.protect.items():
        filters.append(protected(axis, candidates.axes[axis], tolerance))
    if options.match_duration is not None:
        filters.append(matched("duration", candidates.duration, options.match_duration, "s"))
    if options.match_loudness is not None:
        filters.append(matched("loudness", candidates.loudness, options.match_loudness, "dB"))
    return filters


def agreement(members: Floats, chosen: Positions, rejected: Positions) -> Floats:
    """(M,) share of an ensemble's members that score the chosen above the rejected.

    Args:
        members: (N, members) of every candidate.

    >>> agreement(np.array([[1.0, 5.0], [2.0, 3.0]]), np.array([0, 1]), np.array([1, 0])).tolist()
    [0.5, 0.5]
    """
    shares: Floats = (members[chosen] > members[rejected]).mean(axis=1)
    return shares


def protected(axis: str, values: Floats, tolerance: float) -> PairFilter:
    """Keep pairs whose chosen loses at most `tolerance` of an axis against the rejected."""
    return PairFilter(
        f"loses more than {tolerance:g} {axis}", lambda w, low: values[low] - values[w] <= tolerance
    )


def matched(name: str, values: Floats, tolerance: float, unit: str) -> PairFilter:
    """Keep pairs that differ by at most `tolerance`; unknown values (NaN) match nothing."""
    return PairFilter(
        f"{name} differs by more than {tolerance:g} {unit}",
        lambda w, low: np.abs(values[w] - values[low]) <= tolerance,
    )


def bound_value(bound: float | str, values: Floats) -> float:
    """A floor or ceiling as a value: given as such, or the quantile `q0.8` of `values`."""
    parsed = Bound.parse(bound)
    if not parsed.is_quantile:
        return parsed.value
    return float(np.quantile(values, parsed.value)) if values.size else 0.0


def balanced(leads: Floats) -> Mask:
    """Keep equally many pairs for each axis that decides some: the clearest of each.

    Args:
        leads: (M, A) lead of the chosen on each axis, in units of that axis's spread. A pair's
            deciding axis is the one with the largest lead.

    Returns:
        (M,) True for the pairs to keep: of every axis that decides any, as many as the rarest has.
    """
    if not len(leads):
        return np.zeros(0, bool)
    deciding, lead = leads.argmax(axis=1), leads.max(axis=1)
    counts = np.bincount(deciding, minlength=leads.shape[1])
    fewest = counts[counts > 0].min()
    order = np.lexsort((np.arange(len(leads)), -lead, deciding))
    first = np.concatenate([[0], np.cumsum(counts)])[deciding[order]]
    keep = np.zeros(len(leads), bool)
    keep[order] = np.arange(len(leads)) - first < fewest
    return keep


def limited(
    prompt: Integers,
    chosen: Positions,
    rejected: Positions,
    margin: Floats,
    per_prompt: int | None,
    per_candidate: int | None,
) -> Mask:
    """Keep at most so many pairs per prompt and per candidate, greedily by margin.

    In each prompt, pairs are taken from the widest margin down (equal ones in candidate order),
    each unless the prompt or one of its candidates is full.

    Args:
        prompt, chosen, rejected, margin: (M,) of each pair.
        per_prompt, per_candidate: the limits, None for no limit.
    """
    order = np.lexsort((rejected, chosen, -margin, prompt))
    starts = np.flatnonzero(np.diff(prompt[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    prompt_left = np.full(int(prompt.max(initial=0)) + 1, per_prompt or len(order) + 1)
    size = int(max(chosen.max(initial=0), rejected.max(initial=0))) + 1
    candidate_left = np.full(size, per_candidate or len(order) + 1)
    keep = np.zeros(len(order), bool)
    # The k-th pairs of all prompts at once: no two of them share a prompt or a candidate.
    by_rank = order[np.argsort(rank, kind="stable")]
    for pairs in np.split(by_rank, np.cumsum(np.bincount(rank))[:-1]) if len(order) else []:
        room = prompt_left[prompt[pairs]] > 0
        room &= (candidate_left[chosen[pairs]] > 0) & (candidate_left[rejected[pairs]] > 0)
        taken = pairs[room]
        keep[taken] = True
        prompt_left[prompt[taken]] -= 1
        candidate_left[chosen[taken]] -= 1
        candidate_left[rejected[taken]] -= 1
    return keep


def leads(candidates: Candidates, axes: Sequence[str], usable: Mask, w: Any, low: Any) -> Floats:
    """(M, A) lead of the chosen on each axis, over the axis's standard deviation."""
    columns = []
    for axis in axes:
        values = candidates.axes[axis]
        spread = float(values[usable].std()) or 1.0
        columns.append((values[w] - values[low]) / spread)
    return np.stack(columns, axis=1)


def _drop_values(column: list[Any] | None, ledger: Ledger, reason: Callable[[Any], str]) -> None:
    """Drop where `reason` of the column's value is not empty."""
    for position, value in enumerate(column or []):
        text = reason(value)
        if text:
            ledger.drop_one(position, text)


def _flag_reason(flags: Any, unwanted: set[str]) -> str:
    hits = [flag for flag in split_flags(flags) if flag in unwanted]
    return f"flag {hits[0]}" if hits else ""


def split_flags(flags: Any) -> list[str]:
    """Flags from a list, or from the text joined by `;` that CSV holds."""
    given = flags.split(";") if isinstance(flags, str) else flags or []
    return [flag.strip() for flag in given if flag.strip()]


def _named(bound: float | str, value: float) -> str:
    return f"{value:g} ({bound})" if Bound.parse(bound).is_quantile else f"{value:g}"
