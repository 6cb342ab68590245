"""verl and verl-omni: one sample a call, batched behind it.

verl: `reward.custom_reward_function.path` is this file, `name` is `compute_score`, and
`reward_kwargs` holds `reward`. verl decodes completions without special tokens, so codec tokens
that are special are lost there: render songs in the rollout and hand over `extra_info["audio"]`.
verl-omni: the same with `name` `compute_audio_score`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from apex_reward.rewards.stacks.single import audio_of, judge_of


async def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward: str = "reward.yaml",
    sample_rate: int | None = None,
    undecodable: float | None = None,
) -> dict[str, Any]:
    """The reward of one sample, as verl calls it.

    Args:
        solution_str: the path of the rendered song, where `extra_info` holds none.
        ground_truth: the prompt, where `extra_info["prompt"]` is none.
        extra_info: `audio` with `audio_sample_rate`, or `audio_path`.
        reward: a reward file, or a model's name for its default mix.
        sample_rate: Hz of waveforms that come without one.
        undecodable: reward of what is no song; None: the lowest that the mix can give.

    Returns:
        `score` and the heads, all finite.
    """
    judge = judge_of(reward, sample_rate, undecodable)
    prompt = (extra_info or {}).get("prompt") or ground_truth or ""
    answer = judge.submit(audio_of(extra_info, solution_str), str(prompt))
    return numbers(await asyncio.wrap_future(answer))


async def compute_audio_score(
    data_source: Any, solution_audio: Any, ground_truth: Any, extra_info: Any = None, **options: Any
) -> dict[str, Any]:
    """The reward of one sample, as verl-omni calls it.

    Args:
        solution_audio: (float32 (T,), Hz); where it is no pair (older forms hand over an image),
            the song is in `extra_info["audio"]` and `extra_info["audio_sample_rate"]`.
        options: `reward` and `undecodable`.

    They, the others and the result are those of `compute_score`.
    """
    if isinstance(solution_audio, tuple) and len(solution_audio) == 2:
        samples, rate = solution_audio
        extra_info = {**(extra_info or {}), "audio": samples, "audio_sample_rate": rate}
    return await compute_score(data_source, "", ground_truth, extra_info, **options)


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a result; text columns are left out."""
    return {name: value for name, value in result.items() if isinstance(value, (int, float))}
