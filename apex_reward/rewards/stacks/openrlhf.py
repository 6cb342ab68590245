"""OpenRLHF: `--reward.remote_url` may name a Python file with `reward_func`; this is one.

The environment variable APEX_REWARD_FILE names the reward file (`reward.yaml` without it), and
APEX_REWARD_SCALE the scale: `none`, or `range` for a mix mapped to [0, 1], which is recommended.
Over HTTP the server's route `/openrlhf` serves instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch

from apex_reward.rewards.judge import Scale
from apex_reward.rewards.stacks.samples import judge_of, path_in

VARIABLE, SCALE_VARIABLE = "APEX_REWARD_FILE", "APEX_REWARD_SCALE"


def reward_func(
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[Any] | None = None,
    *,
    scale: Scale | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Rewards of a batch, as OpenRLHF calls it.

    Args:
        queries: prompt and completion as one text, special tokens and all; what follows the
            prompt is the song's path.
        prompts: their prompts.
        labels, others: not read.
        scale: as in `apex_reward.rewards.judge.Judge`; None takes APEX_REWARD_SCALE.

    Returns:
        `rewards` and `scores` (B,), and `extra_logs` with the heads, all finite.
    """
    wanted = scale or cast(Scale, os.environ.get(SCALE_VARIABLE, "none"))
    judge = judge_of(os.environ.get(VARIABLE, "reward.yaml"), scale=wanted)
    paths = [path_in(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    answers = judge.answers(judge(paths, list(prompts)))
    logs = {name: torch.tensor([one[name] for one in answers]) for name in answers[0]}
    rewards = logs.pop("score")
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
