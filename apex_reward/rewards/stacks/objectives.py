"""One function per objective over one forward, for TRL's `normalize_then_sum` (GDPO)."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apex_reward.errors import UsageError
from apex_reward.rewards.judge import Judged

LOGS = ("log_metric", "log_extra")


class Objective:
    """One head of the mix as a reward function; see `ApexRewardFunction.objectives`.

    Args:
        shared: the forward that all objectives of a function share.
        name: of the head.
        worst: what a song earns on which a guard with a penalty trips.
        floor: what a vetoed song earns; `undecodable` where the function names it.
        undecodable: what a completion without a score earns.
    """

    def __init__(
        self, shared: SharedForward, name: str, worst: float, floor: float, undecodable: Any
    ) -> None:
        self.shared, self.__name__ = shared, name
        self.worst, self.floor, self.undecodable = worst, floor, undecodable

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """B values of the head, as TRL calls it; arguments as of `ApexRewardFunction`."""
        found = self.shared.judged({"prompts": prompts, "completions": completions, **columns})
        return [self.undecodable if row is None else self._value(row) for row in found.rows]

    def _value(self, row: Mapping[str, Any]) -> float:
        guards = self.shared.function.reward.guards.guards
        actions = {guard.action for guard in guards if guard.name in row["flags"]}
        if "veto" in actions:
            return self.floor
        return self.worst if "penalty" in actions else float(row[self.__name__])


class AsyncObjective(Objective):
    """The same, awaited: TRL runs asynchronous rewards at the same time."""

    async def __call__(  # type: ignore[override]
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """As `Objective`."""
        return await asyncio.to_thread(super().__call__, prompts, completions, **columns)


class SharedForward:
    """The latest batch of an `ApexRewardFunction`: calls with the same arguments share it."""

    def __init__(self, function: Any) -> None:
        self.function, self._lock = function, threading.Lock()
        self._latest: tuple[dict[str, Any], Judged] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["function"])  # type: ignore[misc]

    def judged(self, columns: dict[str, Any]) -> Judged:
        """The batch of the function for these keywords, loggers among them."""
        logs = {name: columns.pop(name, None) for name in LOGS}
        with self._lock:
            if self._latest is None or not _same(self._latest[0], columns):
                # Lists may change in place between two calls: the key holds copies.
                key = {k: list(v) if isinstance(v, list) else v for k, v in columns.items()}
                self._latest = key, self.function.judged(columns, **logs)
            return self._latest[1]


def objectives_of(function: Any, asynchronous: bool) -> list[Objective]:
    """See `ApexRewardFunction.objectives`."""
    reward, undecodable = function.reward, function.judge.undecodable
    if reward.mix.embedding_weights is not None:
        raise UsageError("objectives are the heads of a mix; this one weighs embeddings too")
    heads = {head.name: head for head in reward.heads}
    worse = {name: heads[name].low if weight >= 0 else heads[name].high
             for name, weight in reward.mix.weights.items()}  # fmt: skip
    acts = any(guard.action != "flag" for guard in reward.guards.guards)
    endless = [name for name, end in worse.items() if not math.isfinite(end)]
    if endless and (acts or undecodable == "floor"):
        raise UsageError(
            f"{', '.join(endless)} has no worst value for a song without a score; give "
            "undecodable= a number, and guards that flag only"
        )
    kind, shared = AsyncObjective if asynchronous else Objective, SharedForward(function)
    made = []
    for name, end in worse.items():
        beyond = 0.01 * (heads[name].high - heads[name].low)
        floor = end + beyond
        if reward.mix.weights[name] >= 0:
            floor = end - (beyond if math.isfinite(beyond) else 1.0)
            if undecodable == "floor":
                floor = min(floor, function.judge.floor())
        price = floor if undecodable == "floor" else undecodable
        made.append(kind(shared, name, end, floor, price))
    return made


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments hold the same: plain values by value, all others by identity."""
    if one is other:
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    plain = (str, bytes, int, float, np.generic)
    return isinstance(one, plain) and type(one) is type(other) and bool(one == other)
