"""ms-swift: reward classes for an external plugin file.

from apex_reward.rewards.stacks.swift import ApexORM
orms["apex"] = ApexORM  # of reward.yaml; a subclass may name another file and a decoder
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from apex_reward.prompt import prompts_of
from apex_reward.rewards.stacks.samples import judge_of, path_in


class ApexORM:
    """Completions to rewards; swift builds it. A subclass sets `reward`, a file, and `decode`.

    Songs come from the column `audio` of the data set, else from `decode` of `response_token_ids`
    (with `decode.sample_rate` where it returns bare waveforms), else each completion is the path of
    a song. A column `lyrics` goes to models that read lyrics.
    """

    reward = "reward.yaml"
    decode: Callable[..., Any] | None = None  # a function is a `staticmethod`

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        self.judge = judge_of(self.reward)

    def __call__(self, completions: Sequence[str], **kwargs: Any) -> list[float]:
        """B finite rewards."""
        items, rate = self._songs(completions, kwargs)
        texts = kwargs.get("prompt") or kwargs.get("messages") or [""] * len(items)
        found = self.judge(items, prompts_of(texts, kwargs.get("lyrics")), sample_rate=rate)
        return [float(reward) for reward in found.rewards if reward is not None]

    def _songs(
        self, completions: Sequence[str], columns: dict[str, Any]
    ) -> tuple[list[Any], int | None]:
        """The songs, and the rate of bare waveforms among them."""
        if columns.get("audio") is not None:
            return list(columns["audio"]), None
        if self.decode is not None and columns.get("response_token_ids") is not None:
            songs = self.decode([_ids(row) for row in columns["response_token_ids"]])
            return list(songs), getattr(self.decode, "sample_rate", None)
        return [path_in(text) for text in completions], None


def _ids(row: Sequence[Any]) -> list[int]:
    """Ids of a completion; swift has a list of them per turn, of which the last is the song."""
    return list(row[-1] if row and isinstance(row[-1], Sequence) else row)


class AsyncApexORM(ApexORM):
    """The same, awaited: other rewards run meanwhile."""

    async def __call__(  # type: ignore[override]
        self, completions: Sequence[str], **kwargs: Any
    ) -> list[float]:
        """B finite rewards."""
        return await asyncio.to_thread(super().__call__, completions, **kwargs)
