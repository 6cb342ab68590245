"""OpenRLHF: `--reward.remote_url` may name a Python file with `reward_func`; this is one.

The reward file is named by the environment variable APEX_REWARD_FILE (`reward.yaml` without it).
Over HTTP the server's route `/openrlhf` serves instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from apex_reward.rewards.stacks.single import judge_of, path_in

VARIABLE = "APEX_REWARD_FILE"


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]
) -> dict[str, Any]:
    """Rewards of a batch, as OpenRLHF calls it.

    Args:
        queries: prompt and completion as one text, special tokens and all; what follows the
            prompt is the song's path.
        prompts: their prompts.
        labels: not read.

    Returns:
        `rewards` and `scores` (B,), and `extra_logs` with the heads, all finite.
    """
    judge = judge_of(os.environ.get(VARIABLE, "reward.yaml"), None, None).judge
    paths = [path_in(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    results = judge(paths, list(prompts))
    rewards = torch.tensor([result["score"] for result in results])
    names = [*(head.name for head in judge.reward.heads), "reward_raw", "decoded"]
    logs = {name: torch.tensor([result[name] for result in results]) for name in names}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
