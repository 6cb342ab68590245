"""What stacks hand over as one sample: the song in its text or its extra information."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.rewards.judge import Judge, Scale, Undecodable
from apex_reward.rewards.reward import Reward

# Special tokens around a text: words in angle or square brackets.
SPECIALS = re.compile(r"^(\s*(<[^<>\s]+>|\[[A-Z_]+\]))+|((<[^<>\s]+>|\[[A-Z_]+\])\s*)+$")


@cache
def judge_of(reward: str, undecodable: Undecodable = "floor", scale: Scale = "none") -> Judge:
    """The judge of a reward file or a model's name; one per process and settings.

    Raises:
        UsageError: as `Judge`; `undecodable` is None, which these stacks cannot take.
    """
    if undecodable is None:
        raise UsageError("undecodable is None; this stack needs a finite number, or 'floor'")
    loaded = Reward.load(reward) if reward.endswith((".yaml", ".yml")) else Reward(reward)
    return Judge(loaded, undecodable=undecodable, scale=scale)


def path_in(query: str, prompt: str = "") -> str | None:
    """The path that a completion is; None where it is empty.

    Stacks hand over what a tokenizer wrote: the prompt before it, perhaps after a start token, and
    end tokens such as `</s>` or `<|im_end|>` behind it.
    """
    bare = query.lstrip()
    if not bare.startswith(prompt.lstrip()):
        bare = SPECIALS.sub("", bare).lstrip()
    return SPECIALS.sub("", bare.removeprefix(prompt.lstrip())).strip() or None


def audio_of(extra: Mapping[str, Any] | None, text: str) -> Any:
    """The song of a sample: in its extra information, else the path that the text is.

    `audio` (with `audio_sample_rate`), or `audio_path`.
    """
    extra = extra or {}
    if extra.get("audio") is not None:
        rate = extra.get("audio_sample_rate")
        return extra["audio"] if rate is None else (extra["audio"], int(rate))
    return extra.get("audio_path") or path_in(text)


def numbers(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an answer, without its texts."""
    return {name: value for name, value in answer.items() if isinstance(value, (int, float))}
