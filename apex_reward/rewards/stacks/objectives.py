"""One function per objective over one forward, for TRL's `normalize_then_sum` (GDPO).

GDPO (arXiv 2601.05242) normalises every objective within its group before they are summed, so each
needs a function of its own; the songs are heard once for all of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.rewards.stacks.trl import ApexRewardFunction
from apex_reward.scores.mix import RewardMix

Objective = Callable[..., Any]


def functions(function: ApexRewardFunction, asynchronous: bool = False) -> list[Objective]:
    """A reward function per head of the mix, named after it; weights are the trainer's to give.

    Each returns the head itself (B,), None where a completion is no song. Guards and loudness are
    those of `function`; a song on which a guard with a penalty or a veto trips gets the head's
    lowest value. Calls with the same completions share one forward.

    Args:
        function: what hears the songs.
        asynchronous: make real `async def` functions, which TRL runs at the same time.

    Raises:
        UsageError: the mix is a preference head, or a head has no lowest value.
    """
    mix = function.reward.mix
    if not isinstance(mix, RewardMix):
        raise UsageError("objectives are the heads of a mix; a preference head has none")
    shared = _Shared(function)
    lowest = {head.name: head.low for head in function.reward.heads}
    if endless := [name for name in mix.weights if lowest[name] == -float("inf")]:
        raise UsageError(f"{', '.join(endless)} has no lowest value that a guard could give")
    make = _asynchronous if asynchronous else _plain
    return [make(shared, name, lowest[name]) for name in mix.weights]


def _plain(shared: _Shared, name: str, low: float) -> Objective:
    def objective(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        return shared.head(name, low, prompts, completions, columns)

    objective.__name__ = name
    return objective


def _asynchronous(shared: _Shared, name: str, low: float) -> Objective:
    async def objective(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[Any]:
        return await asyncio.to_thread(shared.head, name, low, prompts, completions, columns)

    objective.__name__ = name
    return objective


class _Shared:
    """The latest call's columns; the next call with other completions replaces them."""

    def __init__(self, function: ApexRewardFunction) -> None:
        self._function, self._lock = function, threading.Lock()
        self._key: Any = None
        self._columns: dict[str, list[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self._function}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["function"])  # type: ignore[misc]

    def head(
        self,
        name: str,
        low: float,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: dict[str, Any],
    ) -> list[Any]:
        logs = {key: columns.pop(key, None) for key in ("log_metric", "log_extra")}
        key = repr((prompts, completions, columns.get("completion_ids")))
        with self._lock:
            if key != self._key or not self._columns:
                self._columns = self._heard(prompts, completions, columns, logs)
                self._key = key
            found = self._columns
        bad = self._priced()
        return [
            low if value is not None and bad & set((flags or "").split(";")) else value
            for value, flags in zip(found[name], found["flags"], strict=True)
        ]

    def _priced(self) -> set[str]:
        return {g.name for g in self._function.reward.guards.guards if g.action != "flag"}

    def _heard(
        self, prompts: Any, completions: Any, columns: dict[str, Any], logs: dict[str, Any]
    ) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}

        def keep(name: str, values: list[Any]) -> None:
            found[name.rpartition("/")[2]] = values
            if logs["log_extra"] is not None:
                logs["log_extra"](name, values)

        self._function(
            prompts, completions, log_metric=logs["log_metric"], log_extra=keep, **columns
        )
        return found
