"""verl and verl-omni: one sample a call, batched behind it.

verl: `reward.custom_reward_function.path` is this file, `name` is `compute_score`, and
`reward_kwargs` holds `reward`. verl decodes completions without special tokens, so codec tokens
that are special are lost there: render songs in the rollout and hand over `extra_info["audio"]`.
verl-omni: the same with `name` `compute_audio_score`.

Both functions take the keywords of every manager of the two packages and ignore those that they do
not know: with a router these are `reward_router_address`, `reward_model_tokenizer`, `model_name`
and `sampling_params`. verl-omni hands over mono only: it raises for two channels, so mix stereo
down in the rollout, or render files and hand over `extra_info["audio_path"]`.

verl-omni's native reward models, which the trainer holds and moves off its device: in
`reward.models`, `backend: native` and `executor.model:
apex_reward.rewards.stacks.verl:ApexNativeReward`, with the reward file as its model path. The score
function, `compute_score`, gets it as `reward_model`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from apex_reward.errors import UsageError
from apex_reward.rewards.judge import Judge, Scale, Undecodable
from apex_reward.rewards.stacks.samples import audio_of, judge_of, reward_of


async def compute_score(
    data_source: Any = None,
    solution_str: str = "",
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    solution_image: Any = None,
    solution_audio: Any = None,
    reward: str = "reward.yaml",
    reward_model: Any = None,
    sample_rate: int | None = None,
    undecodable: Undecodable = "floor",
    scale: Scale = "none",
    **others: Any,
) -> dict[str, Any]:
    """The reward of one sample, as verl and verl-omni call it.

    Args:
        data_source, solution_image, others: not read.
        solution_str: the path of the rendered song, where nothing else holds it.
        ground_truth: the prompt, where `extra_info` has no `prompt`.
        extra_info: `prompt`, `lyrics`, and `audio` with `audio_sample_rate`, or `audio_path`.
        solution_audio: (float32 (T,), Hz); None takes the song of `extra_info`.
        reward: a reward file, or a model's name for its default mix.
        reward_model: an `ApexNativeReward` that verl-omni holds, in place of `reward`,
            `undecodable` and `scale`.
        sample_rate: Hz of waveforms that come without a rate; None refuses those.
        undecodable, scale: as in `apex_reward.rewards.judge.Judge`; `scale="range"` is
            recommended with verl's group advantages.

    Returns:
        `score` and the heads, all finite.

    Raises:
        UsageError: as `Judge`.
    """
    extra = extra_info or {}
    prompt = {"prompt": extra.get("prompt") or ground_truth, "lyrics": extra.get("lyrics")}
    song = audio_of(extra, solution_str) if solution_audio is None else tuple(solution_audio)
    if reward_model is not None:
        answer = reward_model.infer(song, prompt, sample_rate)
        return dict(await answer if inspect.isawaitable(answer) else answer)
    judge = judge_of(reward, undecodable, scale)
    return dict(await asyncio.wrap_future(judge.submit(song, prompt, sample_rate)))


async def compute_audio_score(
    data_source: Any = None,
    solution_audio: Any = None,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    solution_image: Any = None,
    reward: str = "reward.yaml",
    reward_model: Any = None,
    undecodable: Undecodable = "floor",
    scale: Scale = "none",
    **others: Any,
) -> dict[str, Any]:
    """The reward of one sample, as verl-omni's audio manager calls it.

    Args:
        solution_audio: (float32 (T,), Hz). Where it is no such pair (older forms hand over an
            image), the song is in `extra_info["audio"]` and `extra_info["audio_sample_rate"]`.

    The others, the result and the errors are those of `compute_score`.
    """
    pair = isinstance(solution_audio, (tuple, list)) and len(solution_audio) == 2
    return await compute_score(
        data_source, "", ground_truth, extra_info,
        solution_audio=solution_audio if pair else None,
        reward=reward, reward_model=reward_model, undecodable=undecodable, scale=scale,
    )  # fmt: skip


class ApexNativeReward:
    """A reward on a device, with the methods that verl-omni calls.

    Args:
        model_path: a reward file (`.yaml`), or a model's name for its default mix.
        device: where it scores.
        undecodable, scale: as in `Judge`; None is refused, because the score must be finite.
        options: `mix`, `loudness`, `guards`, `caution` of a model that is named without a file.

    Raises:
        UsageError: as `Reward` and `Judge`; options beside a reward file.
    """

    def __init__(
        self,
        model_path: str,
        device: str | None = None,
        *,
        undecodable: Undecodable = "floor",
        scale: Scale = "none",
        **options: Any,
    ) -> None:
        if undecodable is None:
            raise UsageError("undecodable is None; verl-omni needs a finite number, or 'floor'")
        reward = reward_of(model_path, device, **options)
        self._judge: Judge | None = Judge(reward, undecodable=undecodable, scale=scale)

    @property
    def judge(self) -> Judge:
        """The judge; raises UsageError after `close`."""
        if self._judge is None:
            raise UsageError("the reward model is closed; build another one")
        return self._judge

    def infer(self, audio: Any, prompt: Any = None, sample_rate: int | None = None) -> Any:
        """Score and heads of a song, all finite; of a list of songs, a list of them.

        Args:
            audio: as `apex_reward.rewards.songs.song_of` takes it; None is no song.
            prompt: its prompt; a list beside a list of songs.
            sample_rate: Hz of bare samples.
        """
        several = isinstance(audio, list)
        songs: Sequence[Any] = audio if several else [audio]
        prompts = prompt if several else [prompt]
        found = self.judge(songs, prompts, sample_rate=sample_rate)
        answers = self.judge.answers(found)
        return answers if several else answers[0]

    def to(self, device: str) -> ApexNativeReward:
        """Move the models."""
        self.judge.reward.to(device)
        return self

    def offload(self) -> None:
        """Move the models to the CPU."""
        self.judge.reward.offload()

    def onload(self) -> None:
        """Move the models back."""
        self.judge.reward.onload()

    def close(self) -> None:
        """Drop the models; only `close` may follow."""
        self._judge = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
