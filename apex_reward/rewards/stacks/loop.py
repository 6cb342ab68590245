"""A training loop of one's own: rewards of its songs, and the figures to log of them.

Shape key: B = songs of a call, M = reference songs, W = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.stacks.batch import BatchJudge
from apex_reward.rewards.stacks.groups import prompt_keys
from apex_reward.rewards.stacks.log import RewardLog
from apex_reward.rewards.stacks.songs import prompt_texts, song_of


@dataclass(frozen=True)
class Heard:
    """What a `LoopJudge` makes of B songs.

    Attributes:
        rewards: after guards; None where there is no song.
        columns: per head, `reward_raw` and `flags` (joined by `;`), B values each.
        figures: means and shares to log, named as `ApexRewardFunction` logs them.
        embeddings: per song (W,), None where there is none.
    """

    rewards: list[float | None]
    columns: dict[str, list[Any]]
    figures: dict[str, float]
    embeddings: list[Tensor | None]

    @property
    def known(self) -> list[float]:
        """The rewards of the songs that could be heard."""
        return [reward for reward in self.rewards if reward is not None]

    @property
    def mean(self) -> float | None:
        """Mean reward of the songs that could be heard; None of none."""
        return sum(self.known) / len(self.known) if self.known else None

    @property
    def flagged(self) -> list[bool]:
        """Whether a guard tripped, of the songs that could be heard."""
        return [bool(flags) for flags in self.columns["flags"] if flags is not None]


class LoopJudge:
    """Songs in memory to rewards after guards, without a graph, as training functions give them.

        judge = LoopJudge(reward, reference=song_embeddings(reward, ["good.wav", "better.wav"]))
        heard = judge(songs, prompts)
        heard.mean, heard.figures["apex/distance"]

    Args:
        reward: a `Reward`, or models for their default mix.
        sample_rate: Hz of waveforms that come without one; None takes the reward's.
        reference: (M, W) embeddings of reference songs, for the distance.
        name: what the figures' names begin with.
    """

    def __init__(
        self,
        reward: Reward | Models,
        sample_rate: int | None = None,
        reference: Tensor | None = None,
        name: str = "apex",
    ) -> None:
        self.reward = as_reward(reward)
        self.reward.check_single()
        self.sample_rate = sample_rate or self.reward.sample_rate
        self.reference, self.name = reference, name
        self._judge = BatchJudge(self.reward)

    def __call__(self, songs: Sequence[Any], prompts: Sequence[Any] | None = None) -> Heard:
        """Judge B songs.

        Args:
            songs: waveforms (T,) or (C, T) in [-1, 1], `Waveform`s, paths, or None for what is no
                song.
            prompts: B texts or message lists; songs of one prompt are compared. None: all are of
                one prompt, and a model that reads text refuses.
        """
        items = [song_of(item, self.sample_rate) for item in songs]
        texts = None if prompts is None else prompt_texts(prompts)
        batch = self._judge(items, texts)
        rewards: list[float | None] = [None] * len(items)
        for i, raw, tripped in zip(batch.present, batch.raw, batch.flags, strict=True):
            rewards[i] = self.reward.guarded(raw, tripped, len(batch.raw))
        keys = [""] * len(items) if prompts is None else prompt_keys(prompts)
        log = RewardLog(self.name, self.reward, batch, keys, rewards, self.reference)
        columns: dict[str, list[Any]] = {}
        figures: dict[str, float] = {}
        log.metrics(figures.__setitem__)
        log.columns(lambda name, values: columns.update({name.rpartition("/")[2]: values}))
        return Heard(rewards, columns, figures, log.vectors())
