"""`ApexRewardFunction`: songs as the reward of TRL's GRPOTrainer and RLOOTrainer (trl 1.16).

Shape key: B = completions of one call, C = channels, T = samples.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.prompt import prompts_of
from apex_reward.rewards.groups import everywhere, prompt_keys
from apex_reward.rewards.guards import Action, Guard, Guards
from apex_reward.rewards.judge import Judge, Judged, Undecodable
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.stacks.objectives import Objective, objectives_of
from apex_reward.scores.resolve import Mix

Decode = Callable[..., Iterable[Any]]
LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list[Any]], None]
BRIEF = ("reward_raw", "undecodable", "guard_any", "flags")
# One thread: a call gathers from all processes, so in all of them calls come in the same order.
IN_TURN = ThreadPoolExecutor(1, "apex-reward")


class ApexRewardFunction:
    """A reward function for TRL: completions to songs, songs to rewards.

        trainer = GRPOTrainer(policy, reward_funcs=ApexRewardFunction(reward, decode=decode))

    All completions of a call are scored as one batch, on the reward model's device, without a
    graph. Under several processes each scores its own completions; what needs a whole prompt group
    (the `group` normalisation, the zero-variance share) is gathered from all, so that rewards do
    not depend on the number of processes.

    Logged through `log_metric`, under NAME/: the figures of `Judge.figures`. Two of them rise when
    a policy leaves what the reward knows: `reward_spread` (with an ensemble) and `distance` (with
    `reference`). Logged through `log_extra`, per completion: each head, `reward_raw`, `flags`
    (joined by `;`).

    Args:
        reward: a `Reward`, which holds all that is rewarded; or models, for which `mix`,
            `loudness`, `guards`, `caution` and `batch_segments` are those of `Reward`.
        decode: turns completions into songs. It is called with those of the keyword arguments
            `prompts`, `completions`, `completion_ids` and the dataset's columns that its signature
            names (all, if it takes `**kwargs`). It returns one item per completion: a pair
            (samples, rate), a `Waveform`, a path, an Audio column's mapping, a bare float waveform
            (T,) or (C, T) in [-1, 1] where a sample rate is given, or None for a completion that
            does not decode. `apex_reward.rewards.decoders` has hooks for codec tokens and audio
            files.
        sample_rate: Hz of bare waveforms; None takes `decode.sample_rate`. Without either, bare
            waveforms are an error.
        undecodable: reward of a completion without a score (nothing decoded, no samples, samples
            that are NaN, infinite or far outside [-1, 1]). `floor` is `Reward.floor`, below the
            reward of every song. A number stands for itself. None leaves the completion out of
            the update, which is safe only while this is the trainer's one reward function: beside
            another one TRL counts None as 0.
        reference: (M, W) embeddings of songs that a policy should sound like, as
            `apex_reward.rewards.distance.song_embeddings` gives them, for the logged `distance`.
        name: under which TRL logs it.
        offload: keep the models off the device between calls, for a reward beside a policy on one
            GPU. A call moves them there and back.
        brief: log `reward_raw`, `undecodable`, `guard_any` and `flags` only, the columns without
            NAME/, so that TRL's table of completions fits 80 columns.

    Raises:
        UsageError: as `Reward` and `Judge`; options beside a `Reward` that holds them; a mix
            without a lowest value and no `undecodable`.
    """

    def __init__(
        self,
        reward: Reward | Models,
        mix: Mix | None = None,
        *,
        decode: Decode,
        guards: Guards | Iterable[Guard] | Action | None = "flag",
        sample_rate: int | None = None,
        loudness: float | None = None,
        caution: float | None = None,
        batch_segments: int | None = None,
        undecodable: Undecodable = "floor",
        reference: Tensor | None = None,
        name: str = "apex",
        offload: bool = False,
        brief: bool = False,
    ) -> None:
        options = {"loudness": loudness, "caution": caution, "batch_segments": batch_segments}
        given: dict[str, Any] = {key: v for key, v in options.items() if v is not None}
        if guards != "flag" or not isinstance(reward, Reward):
            given["guards"] = guards
        self.reward = as_reward(reward, mix, **given)
        self.decode = decode
        self.sample_rate: int | None = sample_rate or getattr(decode, "sample_rate", None)
        self.judge = Judge(
            self.reward,
            sample_rate=self.sample_rate,
            undecodable=undecodable,
            reference=reference,
            name=name,
        )
        self.offload, self.brief = offload, brief
        if offload:
            self.reward.offload()
        self.__name__ = name
        self._warned = False

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of a batch of completions, as TRL calls it.

        Args:
            prompts, completions: B texts or message lists.
            completion_ids: B lists of token ids.
            log_metric, log_extra: TRL's loggers; None logs nothing.
            columns: the dataset's other columns, B values each, and TRL's own. `lyrics` goes to
                models that read lyrics.

        Returns:
            B rewards.

        Raises:
            UsageError: `decode` returns another number of items, bare waveforms without a rate, or
                integers.
        """
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        return self.judged({**columns, **given}, log_metric, log_extra).rewards

    async def asynchronous(
        self, prompts: Sequence[Any], completions: Sequence[Any], **arguments: Any
    ) -> list[float | None]:
        """The same as a coroutine function: TRL's other asynchronous rewards run meanwhile.

            trainer = GRPOTrainer(policy, reward_funcs=[function.asynchronous, other], ...)

        Calls of one process run one after the other in a thread. TRL logs it as `asynchronous`.
        """
        work = functools.partial(self, prompts, completions, **arguments)
        return await asyncio.get_running_loop().run_in_executor(IN_TURN, work)

    def objectives(self, asynchronous: bool = False) -> list[Objective]:
        """A reward function per head of the mix, in its order, over one forward of this function.

        For TRL's `multi_objective_aggregation="normalize_then_sum"` (GDPO, arXiv 2601.05242), which
        normalises each objective within its group before they are summed:

            trainer = GRPOTrainer(policy, reward_funcs=function.objectives(), ...)

        with `reward_weights=list(function.reward.mix.weights.values())`. Each returns the head
        itself. A completion without a score earns this function's `undecodable` in each of them.
        Where that is `floor`, a vetoed song earns it too, and it lies beyond the head's range on
        its worse side: below it, or above it where the mix has a negative weight. A penalty gives
        the worse end of the range.

        Args:
            asynchronous: make the asynchronous form, which TRL runs at the same time.

        Raises:
            UsageError: the mix weighs embeddings, or a head has no end where one is needed.
        """
        return objectives_of(self, asynchronous)

    def judged(
        self,
        arguments: dict[str, Any],
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
    ) -> Judged:
        """What the judge makes of a batch; `arguments` as keywords of a call, without loggers."""
        prompts, completions = arguments["prompts"], arguments["completions"]
        keys = prompt_keys(prompts, arguments.get("lyrics"))
        songs = self._decoded(arguments, len(completions))
        texts = prompts_of(prompts, arguments.get("lyrics"))
        try:
            self.reward.onload()
            found = self.judge(songs, texts, keys=keys, gather=everywhere)
        finally:
            if self.offload:
                self.reward.offload()
        if not found.scored and completions:
            self._warn_of_nothing(arguments.get("completion_ids"), found)
        figures = self.judge.figures(found, keys, everywhere)  # gathers, so every process calls it
        for name, value in figures.items():
            if log_metric is not None and (not self.brief or name.rpartition("/")[2] in BRIEF):
                log_metric(name, value)
        for name in [*(head.name for head in self.reward.heads), "reward_raw", "flags"]:
            if log_extra is not None and (not self.brief or name in BRIEF):
                shown = name if self.brief else f"{self.__name__}/{name}"
                cells = [None if row is None else row[name] for row in found.rows]
                log_extra(shown, [";".join(c) if isinstance(c, list) else c for c in cells])
        return found

    def _decoded(self, arguments: dict[str, Any], count: int) -> list[Any]:
        items = list(self.decode(**_wanted(self.decode, arguments)))
        if len(items) != count:
            raise UsageError(f"decode returned {len(items)} songs for {count} completions")
        for item in items:
            samples = item[0] if isinstance(item, tuple) and len(item) == 2 else item
            # A mistake of the decoder is no song that failed.
            if isinstance(samples, (Tensor, np.ndarray)) and (
                samples.ndim not in (1, 2) or "float" not in str(samples.dtype)
            ):
                raise UsageError(
                    f"a completion decoded to {samples.dtype} of shape {tuple(samples.shape)}; "
                    "expected a float waveform (T,) or (C, T) in [-1, 1], or None"
                )
        return items

    def _warn_of_nothing(self, ids: Sequence[Sequence[int]] | None, found: Judged) -> None:
        """Say once what came and what was expected, where no completion at all has a score."""
        if self._warned:
            return
        self._warned = True
        shown = "" if not ids else f" The first begins with the ids {list(ids[0])[:12]}."
        reason = next(iter(found.reasons.values()), "")
        expected = getattr(self.decode, "expected", None)
        warnings.warn(
            "no completion of this batch gave a song that can be scored: every reward is the one "
            f"for undecodable completions, and nothing is learnt. The first {reason}.{shown} "
            + (f"Expected: {expected}" if expected else "Check the decode hook."),
            stacklevel=4,
        )


def _wanted(hook: Decode, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the hook's signature names; all of them for `**kwargs`."""
    parameters = inspect.signature(hook).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.name not in arguments
    ]
    if missing:
        raise UsageError(
            f"decode asks for {', '.join(missing)}; it can have {', '.join(sorted(arguments))}"
        )
    return {p.name: arguments[p.name] for p in parameters if p.name in arguments}
