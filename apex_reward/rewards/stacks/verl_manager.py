"""verl: a reward manager that sees token ids, for songs that are codec tokens.

`reward.reward_manager`: `source=importlib`, `name=ApexRewardManager`, `module.path` this file.
verl hands reward functions text without special tokens; a manager sees the ids themselves. What it
rewards stands in `reward.custom_reward_function.reward_kwargs`, with no `path` beside it:
`reward`, a reward file, and `decode`, `package.module:callable` that takes `completion_ids`, as
`ApexRewardFunction`'s does (such as a `CodecDecoder`).
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.rewards.stacks.single import judge_of
from apex_reward.rewards.stacks.songs import prompt_texts
from apex_reward.rewards.stacks.verl import numbers


class ApexRewardManager:
    """One response a call, awaited; calls that come together are judged together.

    Args:
        config: verl's; `reward.custom_reward_function.reward_kwargs` is read.
        tokenizer, compute_score: not read.

    Raises:
        UsageError: no `decode` among the settings, or one that cannot be imported.
    """

    def __init__(
        self, config: Any, tokenizer: Any = None, compute_score: Any = None, **options: Any
    ) -> None:
        given = config["reward"]["custom_reward_function"].get("reward_kwargs") or {}
        if "decode" not in given:
            raise UsageError(
                "reward.custom_reward_function.reward_kwargs has no decode; name what makes songs "
                "of token ids as package.module:callable"
            )
        self.decode = _imported(given["decode"])
        self.judge = judge_of(str(given.get("reward", "reward.yaml")), None, None)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the last response of a `DataProto`, as verl asks for it.

        Returns:
            `reward_score`, and `reward_extra_info` with `score`, the heads and `decoded`.
        """
        item = data[len(data) - 1]
        ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][-len(ids) :].sum())
        song = (await asyncio.to_thread(self.decode, completion_ids=[ids[:length].tolist()]))[0]
        if song is not None and hasattr(self.decode, "sample_rate"):
            song = (song, int(self.decode.sample_rate))
        answer = numbers(await asyncio.wrap_future(self.judge.submit(song, _prompt(item))))
        return {"reward_score": answer["score"], "reward_extra_info": answer}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[float]) -> Tensor:
        """(B, L) with each score at its response's last token, as verl's own managers do it."""
        mask = data.batch["attention_mask"][:, data.batch["prompts"].shape[1] :]
        rewards = torch.zeros(data.batch["responses"].shape)
        rewards[torch.arange(len(rewards)), mask.sum(dim=1) - 1] = torch.tensor(scores)
        return rewards


def _prompt(item: Any) -> str:
    """Of `extra_info`, the raw chat, or the ground truth."""
    rows: Mapping[str, Any] = item.non_tensor_batch
    said = (rows.get("extra_info") or {}).get("prompt")
    if said is None and rows.get("raw_prompt") is not None:
        said = prompt_texts([list(rows["raw_prompt"])])[0]
    return str(said or (rows.get("reward_model") or {}).get("ground_truth") or "")


@cache
def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"decode is {name!r}; expected package.module:callable ({error})"
        ) from error
    return found
