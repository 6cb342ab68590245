"""From candidates to pairs: the whole flow in `build`.

Shape key: N = candidates, M = pairs, A = axes, R = rulers, P = prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.tables import table_of
from apex_reward.pairs.candidates import (
    MESSAGES,
    Candidates,
    Floats,
    Integers,
    arrange,
    one_spelling,
    read_candidates,
)
from apex_reward.pairs.constraints import (
    Ledger,
    Mask,
    agreement,
    allowed_pairs,
    check_candidates,
    constraints,
)
from apex_reward.pairs.options import DEFAULT_QUANTILE, DEFAULT_TOP_K, PairOptions
from apex_reward.pairs.strategies import MARGIN_INSIDE, Strategy, StrategySettings, find_strategy
from apex_reward.pairs.teaches import RulerShare, ruler_shares, warnings_of
from apex_reward.report.songs import Rows

MOST_PER_PROMPT = 4_000
"""Candidates of one prompt; every strategy looks at all pairs of them."""
CELLS_AT_ONCE = 4_000_000
"""Size of the (prompts, axes, N, N) block that a strategy works on: about 32 MB a copy."""
ROWS_AT_ONCE = 50_000


@dataclass(frozen=True)
class PairSet:
    """The outcome of a run.

    Attributes:
        candidates: N candidates in canonical order, with durations and loudness where known.
        chosen, rejected: (M,) positions of the kept pairs, by prompt, then candidate order.
        test: (M,) True for the pairs of the split `test`.
        split_note: a sentence where the split `test` is smaller than asked for, else empty.
        dropped: reason of each candidate that is in no pair.
        proposed: (chosen, rejected) of all pairs that the strategy proposed.
        removed: reason of each proposed pair that was removed.
    """

    candidates: Candidates
    options: PairOptions
    chosen: Integers
    rejected: Integers
    test: Mask
    split_note: str
    dropped: Ledger
    proposed: tuple[Integers, Integers]
    removed: Ledger

    @property
    def margin(self) -> Floats:
        """(M,) lead of the chosen on the primary axis."""
        primary = self.candidates.numbers[self.options.primary]
        return primary[self.chosen] - primary[self.rejected]

    @property
    def agreement(self) -> Floats | None:
        """(M,) share of an ensemble's members that put the chosen above the rejected, if known."""
        if self.candidates.members is None:
            return None
        return agreement(self.candidates.members, self.chosen, self.rejected)

    @cached_property
    def prompts(self) -> list[Any]:
        """(M,) the prompt of each pair: a text, or chat messages as they were given."""
        texts = self.candidates.table["prompt"].take(self.chosen).to_pylist()
        if MESSAGES not in self.candidates.table.column_names:
            return texts
        given = self.candidates.table[MESSAGES].take(self.chosen).to_pylist()
        return [json.loads(m) if m else text for m, text in zip(given, texts, strict=True)]

    @cached_property
    def rulers(self) -> list[RulerShare]:
        """What `ruler_shares` finds."""
        return ruler_shares(self.candidates, self.chosen, self.rejected)

    @cached_property
    def warnings(self) -> list[str]:
        """What `warnings_of` finds; it measures the loudness of some songs."""
        return warnings_of(self.candidates, self.chosen, self.rejected, self.rulers)


def build_pairs(
    rows: Any, strategy: str | Strategy = "best-worst", axis: str | None = None, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Preference pairs from scored candidates.

    Args:
        rows: what `read_candidates` reads: a list of dicts, an Arrow table, a data set of
            `datasets` or the path of a table, with `audio`, `prompt_id` (or `prompt`: text or chat
            messages) and numeric columns; higher is better.
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
    result = build(read_candidates(rows), PairOptions(strategy=strategy, axis=axis, **options))
    return Rows(pair_rows(result)), Rows(dropped_table(result).to_pylist())


def build(
    table: pa.Table,
    options: PairOptions,
    folder: Path | None = None,
) -> PairSet:
    """Arrange, drop, constrain, pair, limit, split.

    Args:
        table: candidates as `read_candidates` returns them.
        options: every choice.
        folder: where relative audio paths are tried next to the working directory.
    """
    candidates = arrange(table, options)
    ledger = Ledger(len(candidates))
    candidates = check_candidates(candidates, options, ledger, folder)
    usable = ledger.open
    chosen, rejected = _proposed(candidates, options, ledger)
    removed = _limited(candidates, options, usable, chosen, rejected)
    _drop_unpaired(candidates, options, ledger, (chosen, rejected), removed)
    w, low = chosen[removed.open], rejected[removed.open]
    test, note = split(_connected_sets(candidates)[w], options.test_share, options.seed)
    proposed = chosen, rejected
    return PairSet(candidates, options, w, low, test, note, ledger, proposed, removed)


def _proposed(
    candidates: Candidates, options: PairOptions, ledger: Ledger
) -> tuple[Integers, Integers]:
    """(chosen, rejected) of the pairs that the strategy chooses among the allowed ones, sorted."""
    name, strategy = find_strategy(options.strategy)
    axes = options.strategy_axes
    settings = StrategySettings(
        min_margin=options.min_margin,
        top_k=options.top_k or DEFAULT_TOP_K,
        quantile=DEFAULT_QUANTILE.get(name, 0.5) if options.quantile is None else options.quantile,
        thresholds=[options.threshold.get(axis, -np.inf) for axis in axes],
    )
    made = constraints(candidates, options, ledger.open)
    stacked = np.stack([candidates.numbers[axis] for axis in axes])
    found = [np.zeros((2, 0), np.int64)]
    each = 1 if candidates.members is None else candidates.members.shape[1]
    blocks = _blocks_of_one_size(candidates, ledger.open, max(len(axes), each))
    for members in blocks:  # (prompts, n) positions
        may = allowed_pairs(made, members, ledger)
        values = stacked[:, members].transpose(1, 0, 2)
        wins = np.asarray(strategy(values, replace(settings, may=may)), bool)
        if wins.shape != may.shape:
            raise UsageError(
                f"the strategy {name} returns shape {wins.shape} for {members.shape[0]} prompts of "
                f"{members.shape[1]} candidates; expected {may.shape}"
            )
        prompt, win, lose = np.nonzero(wins & may)
        found.append(np.stack([members[prompt, win], members[prompt, lose]]))
    chosen, rejected = np.concatenate(found, axis=1)
    order = np.lexsort((rejected, chosen))
    return chosen[order], rejected[order]


def _blocks_of_one_size(candidates: Candidates, usable: Mask, layers: int) -> Iterator[Integers]:
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
        at_once = max(1, CELLS_AT_ONCE // (layers * size * size))
        for begin in range(0, len(first), at_once):
            yield positions[first[begin : begin + at_once, None] + np.arange(size)]


def _limited(
    candidates: Candidates, options: PairOptions, usable: Mask, chosen: Integers, rejected: Integers
) -> Ledger:
    """Remove proposed pairs: the margin, the balance of axes, the limits, the balance of rulers."""
    removed, numbers, rulers = Ledger(len(chosen)), candidates.numbers, candidates.rulers()
    margin = numbers[options.primary][chosen] - numbers[options.primary][rejected]

    def keep(reason: str, which: Callable[[Integers], Mask]) -> None:
        kept = np.flatnonzero(removed.open)
        removed.drop(kept[~which(kept)], reason)

    # A pair of `two-axis` may be decided by the other axis; a margin holds only where asked for.
    if options.strategy_name not in MARGIN_INSIDE and options.min_margin > 0:
        keep(f"margin below {options.min_margin:g}", lambda at: margin[at] >= options.min_margin)
    if options.balance_axes:
        values = np.stack([numbers[axis] for axis in options.strategy_axes], axis=1)
        spread = values[usable].std(axis=0) if usable.any() else 1.0
        leads = (values[chosen] - values[rejected]) / np.where(spread, spread, 1.0)
        keep("axis balance", lambda at: balanced(leads[at]))
    most = options.max_pairs_per_prompt, options.max_pairs_per_candidate
    if any(most):
        prompt = candidates.prompt[chosen]
        keep(
            "over the limit of pairs",
            lambda at: limited(prompt[at], chosen[at], rejected[at], margin[at], *most),
        )
    if options.balance:
        named = np.stack([rulers[name] for name in options.ruler_names], axis=1)
        signs = np.sign(named[chosen] - named[rejected])
        name = listed(options.ruler_names)
        keep(f"balance of {name}", lambda at: neutral(signs[at], margin[at]))
    return removed


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
    deciding = leads.argmax(axis=1)
    counts = np.bincount(deciding, minlength=leads.shape[1])
    return _rank_within(deciding, leads.max(axis=1)) < counts[counts > 0].min()


def neutral(signs: Floats, margin: Floats) -> Mask:
    """Keep as many pairs of each pattern of rulers as of the opposite pattern: the widest margins.

    So the chosen song has more of every ruler as often as it has less of it.

    Args:
        signs: (M, R) 1 where the chosen has more of a ruler, -1 where it has less, 0 for equal.
        margin: (M,) lead of the chosen on the primary axis.

    >>> neutral(np.array([[1], [1], [-1], [0]]), np.array([1.0, 3.0, 2.0, 1.0])).tolist()
    [False, True, True, True]
    """
    counts = Counter(map(tuple, signs.tolist()))
    opposite = np.array([counts[tuple(row)] for row in (-signs).tolist()], np.int64)
    pattern = np.unique(signs, axis=0, return_inverse=True)[1]
    return _rank_within(pattern.ravel(), margin) < opposite


def _rank_within(group: Integers, value: Floats) -> Integers:
    """(M,) how many of the same group come before each: larger values first, then input order."""
    return pd.Series(-value).groupby(group).rank("first").to_numpy(np.int64) - 1


def limited(
    prompt: Integers,
    chosen: Integers,
    rejected: Integers,
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
    keep = np.zeros(len(prompt), bool)
    of_prompt, of_candidate = Counter[int](), Counter[int]()
    songs = list(zip(prompt.tolist(), chosen.tolist(), rejected.tolist(), strict=True))
    for at in np.lexsort((rejected, chosen, -margin)).tolist():
        own, *both = songs[at]
        most = max(of_candidate[song] for song in both)
        if of_prompt[own] < (per_prompt or np.inf) and most < (per_candidate or np.inf):
            keep[at] = True
            of_prompt[own] += 1
            of_candidate.update(both)
    return keep


def _drop_unpaired(
    candidates: Candidates, options: PairOptions, ledger: Ledger,
    proposed: tuple[Integers, Integers], removed: Ledger,
) -> None:  # fmt: skip
    """A reason for every candidate that is in no kept pair: that of its longest-lived pair."""
    # Reasons are numbered in the order of the steps: the largest code is the last step reached.
    last = np.zeros(len(candidates), np.int32)
    paired = np.zeros(len(candidates), bool)
    for side in proposed:
        np.maximum.at(last, side, removed.codes)
        paired[side[removed.open]] = True
    for code, reason in enumerate(removed.texts[1:], start=1):
        ledger.drop(~paired & (last == code), f"pairs dropped ({reason})")
    values = pd.Series(candidates.numbers[options.primary]).where(ledger.open)
    of_prompt = values.groupby(candidates.prompt)
    equal = (of_prompt.transform("min") == of_prompt.transform("max")).to_numpy()
    ledger.drop(~paired & equal, f"ties with every other candidate on {options.primary}")
    ledger.drop(~paired, f"not selected by {options.strategy_name}")


def _connected_sets(candidates: Candidates) -> Integers:
    """(N,) number of each candidate's set, connected by prompts, their texts, files and groups."""
    table = candidates.table
    names = [table["prompt_id"].cast(pa.string()), one_spelling(table["prompt"])]
    names.append(pa.chunked_array([candidates.files], pa.string()))
    if "group" in table.column_names:
        names.append(table["group"].cast(pa.string()))
    labels, start = [], 0
    for column in names:
        full = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        coded = full.combine_chunks().dictionary_encode()
        codes = pc.fill_null(coded.indices, -1).to_numpy().astype(np.int64)
        labels.append(np.where(codes < 0, -1, codes + start))
        start += len(coded.dictionary)  # numbers of one kind must not meet those of another
    return connected(labels)


def connected(labels: Sequence[Integers]) -> Integers:
    """(N,) number of each candidate's connected set, in order of first appearance.

    Args:
        labels: columns of (N,) numbers; equal numbers connect, in one column or in two, and
            negative ones are no label.
    """
    size = len(labels[0])
    rows = np.concatenate([np.flatnonzero(column >= 0) for column in labels])
    label = np.concatenate([column[column >= 0] for column in labels])
    # A graph with a node per candidate and a node per label.
    nodes = size + int(label.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(rows), bool), (rows, size + label)), shape=(nodes, nodes))
    components: Integers = connected_components(graph, directed=False)[1][:size]
    return components


def split(sets: Integers, test_share: float, seed: int) -> tuple[Mask, str]:
    """Which pairs are test pairs: whole connected sets, in seeded random order, while they fit.

    Args:
        sets: (M,) number of each pair's connected set.
        test_share: share of the pairs, in [0, 1). The split never holds more than this share,
            rounded to whole pairs.
        seed: random seed of the order.

    Returns:
        (M,) True for test pairs; and a sentence where they are fewer than half of the share.
    """
    room = wanted = round(test_share * len(sets))
    numbers, own, sizes = np.unique(sets, return_inverse=True, return_counts=True)
    test = np.zeros(len(numbers), bool)
    for number in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if sizes[number] <= room:
            test[number] = True
            room -= int(sizes[number])
    note = ""
    if test_share and len(sets) and not wanted:
        note = (
            f"the test split is empty: {len(sets)} pairs are too few for a share of "
            f"{test_share:g}; one test pair needs --test-share {min(0.99, 1 / len(sets)):.2g}"
        )
    elif wanted - room < wanted / 2:
        note = (
            f"the test split has {wanted - room} of the {wanted} pairs that a share of "
            f"{test_share:g} asks for: {len(sets)} pairs form {len(sizes)} sets connected by "
            f"prompt, file or group, the largest has {sizes.max()} pairs and the smallest "
            f"{sizes.min()}"
        )
    return test[own], note


def pairs_table(result: PairSet) -> pa.Table:
    """One row per pair, with the columns of `pairs.jsonl`."""
    table, options = result.candidates.table, result.options
    sides = {"chosen": result.chosen, "rejected": result.rejected}
    first = table.take(result.chosen)
    columns: dict[str, Any] = {"prompt": first["prompt"], "prompt_id": first["prompt_id"]}
    if MESSAGES in table.column_names:
        columns["prompt"] = table_of([{"prompt": prompt} for prompt in result.prompts])["prompt"]
    columns |= {side: table["audio"].take(at) for side, at in sides.items()}
    for axis in options.involved:
        columns |= {f"{s}_{axis}": result.candidates.numbers[axis][at] for s, at in sides.items()}
    columns["margin"] = result.margin
    if result.agreement is not None:
        columns["agreement"] = result.agreement
    columns["strategy"] = pa.array([options.strategy_name] * len(first), pa.string())
    columns["split"] = pa.array(np.where(result.test, "test", "train").tolist(), pa.string())
    if "lyrics" in table.column_names:
        columns["lyrics"] = first["lyrics"]
    if "tokens" in table.column_names:
        columns |= {f"{side}_tokens": table["tokens"].take(at) for side, at in sides.items()}
    return pa.table(columns)


def pair_rows(result: PairSet) -> Iterator[dict[str, Any]]:
    """The rows of `pairs.jsonl`, a block at a time; chat messages as they were given."""
    prompts = iter(result.prompts)
    for batch in pairs_table(result).to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield row | {"prompt": next(prompts)}


def dropped_table(result: PairSet) -> pa.Table:
    """One row per candidate in no pair, then one per proposed pair that was removed.

    A pair's `audio` is `CHOSEN > REJECTED`.
    """
    table, audio = result.candidates.table, result.candidates.table["audio"]
    lost, gone = (np.flatnonzero(~ledger.open) for ledger in (result.dropped, result.removed))
    chosen, rejected = (side[gone] for side in result.proposed)
    both = pc.binary_join_element_wise(audio.take(chosen), audio.take(rejected), " > ")
    return pa.table(
        {
            "kind": pa.array(["candidate"] * len(lost) + ["pair"] * len(gone), pa.string()),
            "prompt_id": table["prompt_id"].take(np.concatenate([lost, chosen])),
            "audio": pa.chunked_array([*audio.take(lost).chunks, *both.chunks], pa.string()),
            "reason": pa.array(
                result.dropped.reasons(lost) + result.removed.reasons(gone), pa.string()
            ),
        }
    )
