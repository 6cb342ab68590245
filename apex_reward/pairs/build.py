"""From candidates to pairs: the whole flow in `build`.

Shape key: N = candidates, M = pairs, A = axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.errors import DataError, listed
from apex_reward.pairs.audio_facts import check_audio
from apex_reward.pairs.axes import Floats
from apex_reward.pairs.candidates import Candidates, Integers, arrange
from apex_reward.pairs.filters import (
    Positions,
    agreement,
    balanced,
    drop_lonely,
    drop_repeats,
    drop_unusable,
    leads,
    limited,
    pair_filters,
)
from apex_reward.pairs.ledger import Ledger, Mask
from apex_reward.pairs.options import DEFAULT_QUANTILE, DEFAULT_TOP_K, PairOptions, as_names
from apex_reward.pairs.reading import read_candidates
from apex_reward.pairs.split import split_pairs
from apex_reward.pairs.strategies import Strategy, StrategySettings, find_strategy
from apex_reward.report.songs import Rows

if TYPE_CHECKING:
    import pyarrow as pa

MOST_PER_PROMPT = 4_000
"""Candidates of one prompt; every strategy looks at all pairs of them."""
CELLS_AT_ONCE = 4_000_000
"""Size of the (prompts, axes, N, N) block that a strategy works on: about 32 MB a copy."""


@dataclass(frozen=True)
class PairSet:
    """The outcome of a run.

    Attributes:
        candidates: N candidates in canonical order, with durations and loudness where known.
        chosen, rejected: (M,) positions of the kept pairs, by prompt, then candidate order.
        test: (M,) True for the pairs of the split `test`.
        dropped: reason of each candidate that is in no pair.
        proposed: (chosen, rejected) of all pairs that the strategy proposed.
        removed: reason of each proposed pair that a filter removed.
    """

    candidates: Candidates
    options: PairOptions
    chosen: Positions
    rejected: Positions
    test: Mask
    dropped: Ledger
    proposed: tuple[Positions, Positions]
    removed: Ledger

    @property
    def margin(self) -> Floats:
        """(M,) lead of the chosen on the primary axis."""
        primary = self.candidates.axes[self.options.primary]
        return primary[self.chosen] - primary[self.rejected]

    @property
    def agreement(self) -> Floats | None:
        """(M,) share of an ensemble's members that put the chosen above the rejected, if known."""
        if self.candidates.members is None:
            return None
        return agreement(self.candidates.members, self.chosen, self.rejected)


def build_pairs(
    rows: Any, strategy: str | Strategy = "best-worst", axis: str | None = None, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Preference pairs from scored candidates.

    Args:
        rows: list of dicts, Arrow table, `datasets.Dataset` or path of a table, with `audio`,
            `prompt_id` (or `prompt`) and numeric columns; higher is better.
        strategy: one of `STRATEGIES`, a function like them, or `package.module:function`.
        axis: the primary axis, a numeric column or a mix of heads; default `musicality`.
        options: the other fields of `PairOptions`.

    Returns:
        The rows of `pairs.jsonl` and of `dropped.jsonl`: every candidate is a member of a pair or
        has one row of kind `candidate` there.

    Raises:
        UsageError: impossible or contradictory options, listed together.
        DataError: missing columns, listed together.

    Examples:
        >>> songs = [{"prompt_id": 0, "audio": f"{n}.wav", "musicality": n} for n in (1, 2, 4)]
        >>> pairs, dropped = build_pairs(songs, min_margin=0.5)
        >>> [(pair["chosen"], pair["rejected"], pair["margin"]) for pair in pairs]
        [('4.wav', '1.wav', 3.0)]
        >>> [(row["audio"], row["reason"]) for row in dropped]
        [('2.wav', 'not selected by best-worst')]
    """
    given = PairOptions(strategy=strategy, axis=axis, **_tidy(options))
    result = build(read_candidates(rows), given)
    return Rows(pairs_table(result).to_pylist()), Rows(dropped_table(result).to_pylist())


def build(
    table: pa.Table,
    options: PairOptions,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairSet:
    """Arrange, drop, pair, filter, split.

    Args:
        table: candidates as `read_candidates` returns them.
        options: every choice.
        folder: where relative audio paths are tried next to the working directory.
        progress: called with the number of prompts done and of all prompts.
    """
    candidates = arrange(table, options.involved, agreement=options.min_agreement is not None)
    ledger = Ledger(len(candidates))
    drop_unusable(candidates, options, ledger)
    drop_repeats(candidates, ledger)
    candidates = check_audio(
        candidates,
        ledger,
        folder,
        loudness=options.match_loudness is not None,
        duration=options.match_duration is not None,
    )
    drop_lonely(candidates, ledger)
    usable = ledger.open
    chosen, rejected = _proposed(candidates, options, usable, progress)
    removed = Ledger(len(chosen))
    _filter(candidates, options, usable, chosen, rejected, removed)
    kept = removed.open
    _drop_unpaired(candidates, options, ledger, chosen, rejected, removed)
    w, low = chosen[kept], rejected[kept]
    return PairSet(
        candidates=candidates,
        options=options,
        chosen=w,
        rejected=low,
        test=_split(candidates, options, w, low),
        dropped=ledger,
        proposed=(chosen, rejected),
        removed=removed,
    )


def _tidy(options: dict[str, Any]) -> dict[str, Any]:
    names = {name: as_names(options.pop(name, ())) for name in ("axes", "drop_flags")}
    maps = {name: dict(options.pop(name, None) or {}) for name in ("threshold", "protect")}
    return {**options, **names, **maps}


def _proposed(
    candidates: Candidates,
    options: PairOptions,
    usable: Mask,
    progress: Callable[[int, int], None] | None,
) -> tuple[Positions, Positions]:
    """All pairs that the strategy proposes, in candidate order."""
    (name, strategy), axes = find_strategy(options.strategy), options.strategy_axes
    settings = StrategySettings(
        min_margin=options.min_margin,
        top_k=options.top_k or DEFAULT_TOP_K,
        quantile=DEFAULT_QUANTILE.get(name, 0.0) if options.quantile is None else options.quantile,
        thresholds=[options.threshold.get(axis, -np.inf) for axis in axes],
    )
    stacked = np.stack([candidates.axes[axis] for axis in axes])
    leading, trailing = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    done = 0
    blocks = list(_blocks_of_one_size(candidates, usable, len(axes)))
    total = sum(len(members) for members in blocks)
    for members in blocks:  # (prompts, n) positions
        values = stacked[:, members].transpose(1, 0, 2)
        prompt, win, lose = np.nonzero(strategy(values, settings))
        leading.append(members[prompt, win])
        trailing.append(members[prompt, lose])
        done += len(members)
        if progress:
            progress(done, total)
    w, low = np.concatenate(leading), np.concatenate(trailing)
    order = np.lexsort((low, w))
    return w[order], low[order]


def _blocks_of_one_size(candidates: Candidates, usable: Mask, axes: int) -> Iterator[Positions]:
    """Positions of usable candidates, prompts of one size together, a bounded block at a time."""
    positions = np.flatnonzero(usable)
    _, starts, sizes = np.unique(
        candidates.prompt[positions], return_index=True, return_counts=True
    )
    if sizes.max(initial=0) > MOST_PER_PROMPT:
        ids = candidates.table["prompt_id"]
        big = [str(ids[int(positions[s])]) for s in starts[sizes > MOST_PER_PROMPT].tolist()]
        raise DataError(
            f"more than {MOST_PER_PROMPT} usable candidates in one prompt ({listed(big)}), "
            f"the most {sizes.max()}; give fewer candidates, or split them into several prompt_ids"
        )
    for size in np.unique(sizes).tolist():
        first = starts[sizes == size]
        at_once = max(1, CELLS_AT_ONCE // (axes * size * size))
        for begin in range(0, len(first), at_once):
            yield positions[first[begin : begin + at_once, None] + np.arange(size)]


def _filter(
    candidates: Candidates,
    options: PairOptions,
    usable: Mask,
    chosen: Positions,
    rejected: Positions,
    removed: Ledger,
) -> None:
    for pair_filter in pair_filters(candidates, options, usable):
        removed.drop(~pair_filter.keep(chosen, rejected), pair_filter.reason)
    if options.balance_axes:
        kept = np.flatnonzero(removed.open)
        lead = leads(candidates, options.strategy_axes, usable, chosen[kept], rejected[kept])
        _drop_rest(removed, kept, balanced(lead), "axis balance")
    if options.max_pairs_per_prompt or options.max_pairs_per_candidate:
        kept = np.flatnonzero(removed.open)
        w, low = chosen[kept], rejected[kept]
        primary = candidates.axes[options.primary]
        keep = limited(
            candidates.prompt[w],
            w,
            low,
            primary[w] - primary[low],
            options.max_pairs_per_prompt,
            options.max_pairs_per_candidate,
        )
        _drop_rest(removed, kept, keep, "over the limit of pairs")


def _drop_rest(removed: Ledger, kept: Positions, keep: Mask, reason: str) -> None:
    rest = np.zeros(len(removed.open), bool)
    rest[kept[~keep]] = True
    removed.drop(rest, reason)


def _drop_unpaired(
    candidates: Candidates,
    options: PairOptions,
    ledger: Ledger,
    chosen: Positions,
    rejected: Positions,
    removed: Ledger,
) -> None:
    """A reason for every candidate that is in no kept pair: that of its longest-lived pair."""
    size, kept = len(candidates), removed.open
    # Filters number their reasons in order, so the largest code is the last filter reached.
    last = np.zeros(size, np.int32)
    for side in (chosen, rejected):
        np.maximum.at(last, side, removed.codes)
    paired = np.zeros(size, bool)
    paired[chosen[kept]] = paired[rejected[kept]] = True
    for code in np.unique(last[~paired]).tolist():
        if code:
            ledger.drop(~paired & (last == code), f"pairs dropped ({removed.text(code)})")
    primary = candidates.axes[options.primary]
    equal = _all_equal(candidates, primary, ledger.open)
    ledger.drop(~paired & equal, f"ties with every other candidate on {options.primary}")
    ledger.drop(~paired, f"not selected by {options.strategy_name}")


def _all_equal(candidates: Candidates, values: Floats, usable: Mask) -> Mask:
    """(N,) True where all usable candidates of a prompt share one value."""
    low = np.full(len(candidates), np.inf)
    high = np.full(len(candidates), -np.inf)
    np.minimum.at(low, candidates.prompt[usable], values[usable])
    np.maximum.at(high, candidates.prompt[usable], values[usable])
    return (low == high)[candidates.prompt]


def _split(
    candidates: Candidates, options: PairOptions, chosen: Positions, rejected: Positions
) -> Mask:
    """Pairs of one prompt, of one prompt text or of one group stay together."""
    if not options.test_share:
        return np.zeros(len(chosen), bool)
    table, prompt = candidates.table, candidates.prompt
    text = _numbers_of(table["prompt"])
    labels = [prompt[chosen]]
    start = len(candidates)  # numbers of one kind must not meet those of another
    labels += [start + text[side] for side in (chosen, rejected)]
    if "group" in table.column_names:
        group = _numbers_of(table["group"])
        group[group >= 0] += 2 * start
        labels += [group[side] for side in (chosen, rejected)]
    return split_pairs(labels, options.test_share, options.seed)


def _numbers_of(column: pa.ChunkedArray) -> Integers:
    """Equal values of a column as equal numbers from 0, null as -1."""
    import pyarrow.compute as pc

    codes = column.combine_chunks().dictionary_encode().indices
    return pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def pairs_table(result: PairSet) -> pa.Table:
    """One row per pair, with the columns of `pairs.jsonl`."""
    import pyarrow as pa

    table, w, low = result.candidates.table, result.chosen, result.rejected
    audio = table["audio"]
    columns: dict[str, Any] = {
        "prompt": table["prompt"].take(w),
        "prompt_id": table["prompt_id"].take(w),
        "chosen": audio.take(w),
        "rejected": audio.take(low),
    }
    for axis in result.options.involved:
        values = result.candidates.axes[axis]
        columns[f"chosen_{axis}"], columns[f"rejected_{axis}"] = values[w], values[low]
    columns["margin"] = result.margin
    if result.agreement is not None:
        columns["agreement"] = result.agreement
    columns["strategy"] = pa.array([result.options.strategy_name] * len(w), pa.string())
    columns["split"] = pa.array(np.where(result.test, "test", "train").tolist(), pa.string())
    if "tokens" in table.column_names:
        columns["chosen_tokens"] = table["tokens"].take(w)
        columns["rejected_tokens"] = table["tokens"].take(low)
    return pa.table(columns)


def dropped_table(result: PairSet) -> pa.Table:
    """One row per candidate in no pair, then one per proposed pair that a filter removed.

    A pair's `audio` is `CHOSEN > REJECTED`.
    """
    import pyarrow as pa

    table = result.candidates.table
    rows = np.flatnonzero(~result.dropped.open)
    candidates = pa.table(
        {
            "kind": pa.array(["candidate"] * len(rows), pa.string()),
            "prompt_id": table["prompt_id"].take(rows),
            "audio": table["audio"].take(rows),
            "reason": pa.array(_texts(result.dropped.codes[rows], result.dropped), pa.string()),
        }
    )
    gone = np.flatnonzero(~result.removed.open)
    chosen, rejected = (side[gone] for side in result.proposed)
    sides = (table["audio"].take(side).to_pylist() for side in (chosen, rejected))
    pairs = pa.table(
        {
            "kind": pa.array(["pair"] * len(gone), pa.string()),
            "prompt_id": table["prompt_id"].take(chosen),
            "audio": pa.array([f"{a} > {b}" for a, b in zip(*sides, strict=True)], pa.string()),
            "reason": pa.array(_texts(result.removed.codes[gone], result.removed), pa.string()),
        }
    )
    return pa.concat_tables([candidates, pairs])


def _texts(codes: Any, ledger: Any) -> list[str]:
    return [ledger.text(code) for code in codes.tolist()]
