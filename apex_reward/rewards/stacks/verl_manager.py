"""verl: a reward manager that sees token ids, for songs that are codec tokens.

`reward.reward_manager`: `source=importlib`, `name=ApexRewardManager`, `module.path` this file.
verl hands reward functions text without special tokens; a manager sees the ids themselves. Its
settings stand in `reward.custom_reward_function.reward_kwargs`, with no `path` beside it: `reward`,
a reward file; `decode`, `package.module:callable` that takes `completion_ids`, as
`ApexRewardFunction`'s does (such as a `CodecDecoder`); `undecodable` and `scale`, as in `Judge`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import UsageError, named
from apex_reward.prompt import prompt_of
from apex_reward.rewards.stacks.samples import judge_with


class ApexRewardManager:
    """One response a call, awaited; calls at the same time are judged together.

    Args:
        config: verl's; `reward.custom_reward_function.reward_kwargs` is read.
        tokenizer, compute_score: not read.

    Raises:
        UsageError: no `decode` among the settings, or one that cannot be imported; as `Judge`.
    """

    def __init__(
        self, config: Any, tokenizer: Any = None, compute_score: Any = None, **options: Any
    ) -> None:
        given = config["reward"]["custom_reward_function"].get("reward_kwargs") or {}
        name = given.get("decode")
        if name is None:
            raise UsageError(
                "reward.custom_reward_function.reward_kwargs has no decode; name what makes songs "
                "of token ids as package.module:callable"
            )
        self.decode = named(name, "callable for decode")
        self.judge = judge_with(given)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the last response of a `DataProto`, as verl asks for it.

        Returns:
            `reward_score`, and `reward_extra_info` with `score`, the heads and `decoded`.
        """
        item = data[len(data) - 1]
        ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][-len(ids) :].sum())
        songs = await asyncio.to_thread(self.decode, completion_ids=[ids[:length].tolist()])
        rate = getattr(self.decode, "sample_rate", None)
        future = self.judge.submit(next(iter(songs)), _prompt(item.non_tensor_batch), rate)
        answer = await asyncio.wrap_future(future)
        return {"reward_score": answer["score"], "reward_extra_info": answer}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[float]) -> Tensor:
        """(B, L) with each score at its response's last token, as verl's own managers do it."""
        mask = data.batch["attention_mask"][:, data.batch["prompts"].shape[1] :]
        rewards = torch.zeros(data.batch["responses"].shape)
        rewards[torch.arange(len(rewards)), mask.sum(dim=1) - 1] = torch.tensor(scores)
        return rewards


def _prompt(rows: Mapping[str, Any]) -> Any:
    """Of `extra_info`, the raw chat, or the ground truth."""
    extra = rows.get("extra_info") or {}
    text = extra.get("prompt")
    if text is None and rows.get("raw_prompt") is not None:
        text = list(rows["raw_prompt"])
    if not text:
        text = (rows.get("reward_model") or {}).get("ground_truth")
    return prompt_of(text, extra.get("lyrics"))
