"""`ApexRewardFunction`: songs as the reward of TRL's GRPOTrainer and RLOOTrainer (trl 1.16).

Shape key: B = completions of one call, b = those that decode, C = channels, T = samples.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.rewards.guards import Action, Guard, Guards
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.songs import TensorSong
from apex_reward.rewards.stacks.batch import BatchJudge, SongBatch
from apex_reward.rewards.stacks.groups import everywhere, group_numbers, prompt_keys
from apex_reward.rewards.stacks.log import RewardLog
from apex_reward.rewards.stacks.songs import prompt_texts, song_of
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.resolve import Mix
from apex_reward.scores.scores import Scores

Decode = Callable[..., Iterable[Any]]
CALLERS = 8  # frames between a reward function and the trainer that calls it
# One thread: a call gathers from all processes, so in all of them calls come in the same order.
IN_TURN = ThreadPoolExecutor(1, "apex-reward")


class ApexRewardFunction:
    """A reward function for TRL: completions to songs, songs to rewards.

        trainer = GRPOTrainer(policy, reward_funcs=ApexRewardFunction(reward, decode=decode))

    All completions of a call are scored as one batch, on the reward model's device, without a
    graph. Under several processes each scores its own completions; what needs a whole prompt group
    (the `group` normalisation, the zero-variance share) is gathered from all, so that rewards do
    not depend on the number of processes.

    Logged through `log_metric`, under NAME/: the mean of each head, `reward_raw` (before guards),
    `guard_any` and `guard_<name>` (shares of the decoded songs), `undecodable` (share of the
    completions), `zero_variance_groups` (share of the prompt groups with fewer than two different
    rewards: they move no policy), with an ensemble `reward_spread` (mean over the songs of the
    members' spread: its growth over training is the sign of leaving the known),
    `embedding_spread` (mean cosine distance of two songs of one prompt) and, with `reference`,
    `distance` from it. Through
    `log_extra`, per completion: each head, `reward_raw`, `flags` (joined by `;`).

    Args:
        reward: a `Reward`, which says all that is rewarded; or models, for which `mix`,
            `loudness`, `guards`, `caution` and `batch_segments` are those of `Reward`.
        decode: turns completions into songs. It is called with those of the keyword arguments
            `prompts`, `completions`, `completion_ids` and the dataset's columns that its signature
            names (all, if it takes `**kwargs`), and returns one item per completion: a float
            waveform (T,) or (C, T) in [-1, 1], a `Waveform`, a path, an Audio column's mapping, or
            None for what does not decode.
            `apex_reward.rewards.decoders` has hooks for codec tokens and audio files.
        sample_rate: Hz, of decoded tensors; None takes `decode.sample_rate`, else the reward's.
        undecodable: reward of a completion that gives no song. None: TRL leaves it out of the
            update. That is safe only while this is the trainer's one reward function: beside a
            second one TRL counts None as 0, which with rewards below 0 pays for gibberish. There,
            and with `lowest`, it gets the lowest reward that the mix can give (of a mix without
            one, the lowest of the batch).
        reference: (M, W) embeddings of songs that a policy should sound like, as
            `apex_reward.rewards.drift.song_embeddings` gives them: the batch's Frechet distance
            from them is logged. A reward that rises together with it is being gamed.
        name: under which TRL logs it.

    Raises:
        UsageError: as `Reward`, or options beside a `Reward` that holds them.
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
        undecodable: float | Literal["lowest"] | None = None,
        reference: Tensor | None = None,
        name: str = "apex",
    ) -> None:
        options = {"loudness": loudness, "caution": caution, "batch_segments": batch_segments}
        given: dict[str, Any] = {key: v for key, v in options.items() if v is not None}
        if guards != "flag" or not isinstance(reward, Reward):
            given["guards"] = guards
        self.reward = as_reward(reward, mix, **given)
        self.decode = decode
        decoded_rate: int | None = getattr(decode, "sample_rate", None)
        self.sample_rate = sample_rate or decoded_rate or self.reward.sample_rate
        self.undecodable = undecodable
        self.reference = reference
        self.__name__ = name
        self._judge = BatchJudge(self.reward)
        self._warned = False

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
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
            B rewards; `undecodable` where a completion gives no song (nothing decoded, no samples,
            samples that are NaN, infinite or far outside [-1, 1], a rate that nothing resamples).
        """
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        return self._rewards(given, log_metric, log_extra, columns, not _beside_others(self))

    async def asynchronous(
        self, prompts: Sequence[Any], completions: Sequence[Any], **arguments: Any
    ) -> list[float | None]:
        """The same as a coroutine function: TRL's other asynchronous rewards run meanwhile.

            trainer = GRPOTrainer(policy, reward_funcs=[function.asynchronous, other], ...)

        Calls of one process run one after the other in a thread. TRL logs it as `asynchronous`.
        """
        given = {"prompts": prompts, "completions": completions,
                 "completion_ids": arguments.pop("completion_ids", None)}  # fmt: skip
        log_metric, log_extra = (arguments.pop(name, None) for name in ("log_metric", "log_extra"))
        alone = not _beside_others(self.asynchronous)
        work = functools.partial(self._rewards, given, log_metric, log_extra, arguments, alone)
        return await asyncio.get_running_loop().run_in_executor(IN_TURN, work)

    def _rewards(
        self,
        given: dict[str, Any],
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[Any]], None] | None,
        columns: dict[str, Any],
        alone: bool,
    ) -> list[float | None]:
        """As `__call__`; `alone`: whether it is the trainer's one function."""
        prompts, completions = given["prompts"], given["completions"]
        keys = prompt_keys(prompts)
        with torch.no_grad():
            songs = self._decoded({**columns, **given}, len(completions))
            batch = self._judge(
                songs, with_lyrics(prompt_texts(prompts), columns), rewarded=not self._grouped
            )
            if self._grouped:
                batch.raw = self._mixed_in_groups(batch, keys)
        if not batch.present and completions:
            self._warn_of_nothing(given["completion_ids"])
        everyone, _ = everywhere(batch.raw)
        lowest = self.reward.lowest(len(everyone))
        price = self._price(everyone, alone)
        rewards: list[float | None] = [price] * len(songs)
        for i, raw, tripped in zip(batch.present, batch.raw, batch.flags, strict=True):
            rewards[i] = self.reward.guards.adjust(raw, tripped, lowest)
        log = RewardLog(self.__name__, self.reward, batch, keys, rewards, self.reference)
        log.metrics(log_metric)
        log.columns(log_extra)
        return rewards

    @property
    def _grouped(self) -> bool:
        mix = self.reward.mix
        return isinstance(mix, RewardMix) and mix.normalization == "group"

    def _decoded(self, arguments: dict[str, Any], count: int) -> list[TensorSong | None]:
        items = list(self.decode(**_wanted(self.decode, arguments)))
        if len(items) != count:
            raise UsageError(f"decode returned {len(items)} songs for {count} completions")
        return [song_of(item, self.sample_rate) for item in items]

    def _mixed_in_groups(self, batch: SongBatch, keys: list[str]) -> list[float]:
        """The mix of this process's songs, normalised over the prompt groups of all processes."""
        scores = batch.scores
        members = [] if scores is None else _by_song(scores)
        mine = [(keys[i], value) for i, value in zip(batch.present, members, strict=True)]
        entries, place = everywhere(mine)
        if not entries:
            return []
        heads = list(self.reward.heads)
        stacked = torch.tensor([value for _, value in entries])  # (B, M, H)
        gathered = (
            Scores.from_stack(stacked[:, 0], heads)
            if stacked.shape[1] == 1
            else Scores.from_members(stacked.transpose(0, 1), heads)
        )
        groups = group_numbers([key for key, _ in entries])
        return self.reward.mix_scores(gathered, groups=groups)[place].tolist()

    def _price(self, raw: list[float], alone: bool) -> float | None:
        """What a completion that is no song gets."""
        if self.undecodable != "lowest" and (alone or self.undecodable is not None):
            return self.undecodable
        mix = self.reward.mix
        bound = -math.inf
        if isinstance(mix, RewardMix):
            bound = mix.lowest(len(raw), self.reward.heads)
        return bound if math.isfinite(bound) else min(raw, default=0.0)

    def _warn_of_nothing(self, ids: Sequence[Sequence[int]] | None) -> None:
        """Say once what came and what was expected, where no completion at all is a song."""
        if self._warned:
            return
        self._warned = True
        shown = "" if not ids else f" The first begins with the ids {list(ids[0])[:12]}."
        expected = getattr(self.decode, "expected", None)
        warnings.warn(
            f"no completion of this batch gave a song: every reward is the one for undecodable "
            f"completions, and nothing is learnt.{shown} "
            + (f"Expected: {expected}" if expected else "Check the decode hook."),
            stacklevel=4,
        )


def _beside_others(function: Callable[..., Any]) -> bool:
    """Whether the trainer that calls `function` has other reward functions too.

    TRL says so nowhere but in its own attribute, so the callers are asked for it.
    """
    frame = inspect.currentframe()
    for _ in range(CALLERS):
        frame = None if frame is None else frame.f_back
        trainer = None if frame is None else frame.f_locals.get("self")
        functions = getattr(trainer, "reward_funcs", None)
        if isinstance(functions, (list, tuple)) and function in functions:
            return len(functions) > 1
    return False


def with_lyrics(texts: list[str], columns: Mapping[str, Any]) -> list[Any]:
    """Prompts with the lyrics of a column of that name, where there is one."""
    lyrics = columns.get("lyrics")
    if not lyrics:
        return list(texts)
    return [
        {"prompt": text, "lyrics": str(words or "")}
        for text, words in zip(texts, lyrics, strict=True)
    ]


def _by_song(scores: Scores) -> list[list[list[float]]]:
    """(M, H) nested lists per song: plain values travel between processes."""
    members = scores.stack()[None] if scores.members is None else scores.members
    return members.transpose(0, 1).tolist()


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
