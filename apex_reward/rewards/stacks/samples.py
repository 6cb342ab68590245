"""What stacks hand over as one sample: the song in its text or its extra information."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.rewards.judge import Judge, Scale, Undecodable
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.reward import Reward

# Special tokens around a text: words in angle or square brackets.
SPECIALS = re.compile(r"^(\s*(<[^<>\s]+>|\[[A-Z_]+\]))+|((<[^<>\s]+>|\[[A-Z_]+\])\s*)+$")


def reward_of(name: str, device: str | None = None, **options: Any) -> Reward:
    """The reward of a file (`.yaml`), or of a model's name with the options of `Reward`.

    Raises:
        UsageError: options beside a reward file, which has its own.
    """
    if not name.endswith((".yaml", ".yml")):
        return Reward(load_reward_model(name, device=device), **options)
    if options:
        raise UsageError(f"a reward file has its own {', '.join(options)}; leave them out")
    return Reward.load(name, device=device)


def judge_with(settings: Mapping[str, Any] | None) -> Judge:
    """`judge_of` of the `reward`, `undecodable` and `scale` among a stack's settings."""
    given = settings or {}
    names = {"reward": "reward.yaml", "undecodable": "floor", "scale": "none"}
    return judge_of(*(given.get(name, default) for name, default in names.items()))


@cache
def judge_of(reward: str, undecodable: Undecodable = "floor", scale: Scale = "none") -> Judge:
    """The judge of a reward file or a model's name; one per process and settings.

    Raises:
        UsageError: as `Judge`; `undecodable` is None, which these stacks cannot take.
    """
    if undecodable is None:
        raise UsageError("undecodable is None; this stack needs a finite number, or 'floor'")
    return Judge(reward_of(str(reward)), undecodable=undecodable, scale=scale)


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
