"""`Judge`: songs of any form to rewards, without a graph; the one judge behind every stack.

A reward function of a foreign stack runs in threads and in child processes. So a judge holds a
lock, uses no collectives, pickles, works in a forked child, and returns finite numbers.

Shape key: B = songs of a call, b = those that were scored, M = reference songs, W = width of an
embedding.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from apex_reward.errors import UsageError, expect, expect_one_of
from apex_reward.prompt import prompts_of
from apex_reward.rewards.distance import drift_figures
from apex_reward.rewards.engine import SongResult
from apex_reward.rewards.groups import group_numbers, here, prompt_keys, share_without_signal
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.rows import row_columns
from apex_reward.rewards.songs import song_of
from apex_reward.scores.resolve import member_rewards, spread
from apex_reward.scores.scores import Scores

Undecodable = float | Literal["floor"] | None
Scale = Literal["none", "range"]
Gather = Callable[[list[Any]], tuple[list[Any], slice]]
WAIT_SECONDS = 0.02
MOST_TOGETHER = 64


@dataclass
class Judged:
    """What a judge makes of B songs.

    Attributes:
        rewards: B, after guards; `undecodable` for a song without a score.
        rows: B times the heads, `reward_raw` (the mix, less caution) and `flags` (the guards that
            tripped); None for a song without a score.
        reasons: why a song has no score, by position.
        vectors: B embeddings (W,) on the CPU; None for a song without a score or an encoder.
        spread: b spreads of the mix over an ensemble's members; empty without an ensemble.
    """

    rewards: list[float | None]
    rows: list[dict[str, Any] | None]
    reasons: dict[int, str] = field(default_factory=dict)
    vectors: list[Tensor | None] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The rows of the songs with a score."""
        return [row for row in self.rows if row is not None]

    @property
    def known(self) -> list[float]:
        """The rewards of the songs with a score."""
        pairs = zip(self.rewards, self.rows, strict=True)
        return [reward for reward, row in pairs if reward is not None and row is not None]

    @property
    def mean(self) -> float | None:
        """Mean reward of the songs with a score; None without one."""
        return sum(self.known) / len(self.known) if self.known else None


class Judge:
    """Songs and their prompts to rewards after guards.

        judge = Judge(reward, sample_rate=24_000)
        judge(songs, prompts).rewards
        judge.submit(song, prompt).result()["score"]     # single calls share batches

    Args:
        reward: a `Reward`, or models for their default mix.
        sample_rate: Hz of waveforms that come without a rate; None refuses those.
        undecodable: reward of a song without a score: `floor` takes `Reward.floor`, which lies
            below the reward of every song; or a number; or None.
        scale: `range` maps the mix from its own range to [0, 1], before guards; caution can lead
            below 0.
        reference: (M, W) embeddings of reference songs, for the distance among the `figures`.
        name: what the figures' names begin with, before a slash.

    Raises:
        UsageError: `floor` or `range` with a mix that has no lowest (or highest) value.
    """

    def __init__(
        self,
        reward: Reward | Models,
        *,
        sample_rate: int | None = None,
        undecodable: Undecodable = "floor",
        scale: Scale = "none",
        reference: Tensor | None = None,
        name: str = "apex",
    ) -> None:
        self.reward = as_reward(reward)
        self.sample_rate, self.reference, self.name = sample_rate, reference, name
        known = isinstance(undecodable, (int, float)) and math.isfinite(undecodable)
        wanted = "'floor', a finite number or None"
        expect(known or undecodable in ("floor", None), "undecodable", undecodable, wanted)
        self.undecodable = undecodable
        self.ends = self._ends(scale)
        if undecodable == "floor":
            self.floor()
        self._fresh()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in FRESH}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def __call__(
        self,
        items: Sequence[Any],
        prompts: Sequence[Any] | None = None,
        *,
        sample_rate: int | None = None,
        keys: Sequence[str] | None = None,
        gather: Gather = here,
    ) -> Judged:
        """Judge B songs.

        Args:
            items: each as `apex_reward.rewards.songs.song_of` takes it; None is no song.
            prompts: B prompts; texts, messages or `Prompt`s.
            sample_rate: Hz of waveforms that come without a rate, in place of the judge's.
            keys: B keys, equal for songs of one group, for a mix normalised by `group`; None takes
                the prompts.
            gather: the values of all processes and which are this one's, for such a mix.

        Raises:
            UsageError: a waveform without a rate, or no prompts for a model that reads them.
        """
        rate = sample_rate or self.sample_rate
        songs = [song_of(item, rate, f"song {n}") for n, item in enumerate(items)]
        texts = None if prompts is None else prompts_of(prompts)
        device = self.reward.parts.device.type
        off, mixed = torch.autocast(device, enabled=False), torch.autocast("cpu", enabled=False)
        with self._lock, torch.no_grad(), off, mixed:
            if keys is None:
                keys = prompt_keys([""] * len(songs) if texts is None else texts)
            return self._judged(songs, texts, keys, gather)

    def submit(self, item: Any, prompt: Any, sample_rate: int | None = None) -> Future[Any]:
        """The `answer` of one song, once its batch is judged; calls at the same time share one."""
        if self.reward.grouped:
            raise UsageError("a mix normalised by 'group' needs all songs of a prompt in one call")
        answer: Future[Any] = Future()
        self._waiting.put((item, prompt, sample_rate, answer))
        self._thread.submit(self._answer_waiting)
        return answer

    def answers(self, found: Judged) -> list[dict[str, Any]]:
        """A flat answer per song, for stacks that take single results.

        `score` (after guards), `reward_raw`, the heads (and their spreads, with an ensemble) and
        `decoded` (1 or 0). Where there is no score, `reward_raw` is `score` and the heads are 0.
        """
        nothing = dict.fromkeys(row_columns(self.reward, rewarded=False), 0.0)
        known = zip(found.rewards, found.rows, strict=True)
        return [
            {"score": score, "reward_raw": score, **nothing, "decoded": 0.0}
            if row is None
            else {"score": score, **{k: v for k, v in row.items() if k != "flags"}, "decoded": 1.0}
            for score, row in known
        ]

    def floor(self, songs: int = 1) -> float:
        """What a vetoed song and a song without a score earn; below the reward of every song.

        Args:
            songs: of the largest group, for a mix normalised by `group`.
        """
        lowest = self.reward.floor_of(songs)
        if self.ends is None:
            return lowest
        low, high = self.ends
        penalties = self.reward.guards.penalties
        return (lowest + penalties - low) / (high - low) - penalties

    def figures(
        self, found: Judged, keys: Sequence[str], gather: Gather = here
    ) -> dict[str, float]:
        """Means and shares to log of a batch.

        Args:
            keys: B keys, equal for songs of one prompt (`prompt_keys`).
            gather: as in a call, for the figures of groups.

        Returns:
            The mean of each head and `reward_raw`, `guard_any` and `guard_<name>` (shares of the
            scored songs), `undecodable` (share of all), `zero_variance_groups` (share of the groups
            with fewer than two different rewards), `reward_spread` with an ensemble, and the
            figures of `drift_figures`.
        """
        entries, _ = gather(list(zip(keys, found.rewards, found.vectors, strict=True)))
        rows = found.scored
        figures = {
            "zero_variance_groups": share_without_signal(
                [key for key, _, _ in entries], [reward for _, reward, _ in entries]
            ),
            "undecodable": 1 - len(rows) / max(1, len(found.rows)),
        }
        if vectors := [(key, vector) for key, _, vector in entries if vector is not None]:
            names, embedded = zip(*vectors, strict=True)
            figures |= drift_figures(torch.stack(embedded), names, self.reference)
        if rows:
            columns = [name for name in rows[0] if name != "flags"]
            figures |= {name: fmean(row[name] for row in rows) for name in columns}
            figures["guard_any"] = fmean(bool(row["flags"]) for row in rows)
            for guard in self.reward.guards.names:
                figures[f"guard_{guard}"] = fmean(guard in row["flags"] for row in rows)
        if found.spread:
            figures["reward_spread"] = fmean(found.spread)
        return {f"{self.name}/{name}": value for name, value in figures.items()}

    def _ends(self, scale: Scale) -> tuple[float, float] | None:
        expect_one_of("scale", scale, get_args(Scale))
        if scale == "none":
            return None
        low, high = self.reward.mix.bounds(self.reward.heads, 1)
        if not math.isfinite(high - low) or high == low:
            raise UsageError(
                "this mix has no range to map to [0, 1]; mix heads with bounds, normalised by "
                "'range' or 'none', or leave out scale"
            )
        return low, high

    def _judged(
        self, songs: list[Any], texts: list[Any] | None, keys: Sequence[str], gather: Gather
    ) -> Judged:
        """As `__call__`, under the lock."""
        reward = self.reward
        results = []
        if songs:
            read = texts if reward.model.reads_text else None
            settings = reward.engine_settings(block=len(songs))
            results = list(reward.results(songs, read, settings=settings))
        reasons = {i: one.error for i, one in enumerate(results) if one.error is not None}
        scored = [(keys[i], one) for i, one in enumerate(results) if i not in reasons]
        raw, spreads, together = self._mixed(scored, gather)
        price = self.undecodable
        if price == "floor":
            price = self.floor(together)
        lowest = self.floor(together) if reward.guards.vetoes else 0.0
        low, high = self.ends or (0.0, 1.0)
        found = Judged([price] * len(songs), [None] * len(songs), reasons, [None] * len(songs))
        found.spread = spreads
        places = [i for i in range(len(results)) if i not in reasons]
        for i, (_, one), value in zip(places, scored, raw, strict=True):
            if not math.isfinite(value):
                reasons[i] = f"has the reward {value}, which is not finite"
                continue
            assert one.scores is not None  # it has no error
            flags = reward.guards.flags(one.measured)
            found.rows[i] = {**one.scores.rows()[0], "reward_raw": value, "flags": flags}
            found.rewards[i] = reward.guards.adjust((value - low) / (high - low), flags, lowest)
            found.vectors[i] = one.vector
        return found

    def _mixed(
        self, songs: list[tuple[str, SongResult]], gather: Gather
    ) -> tuple[list[float], list[float], int]:
        """The mix of b songs, its spread over an ensemble's members, and the songs of a floor.

        A mix normalised by `group` is one over the groups of all processes.
        """
        entries: list[Any] = [(key, one.scores, one.vector) for key, one in songs]
        mine, groups, together = slice(None), None, 1
        if self.reward.grouped:
            entries, mine = gather(entries)
            together = len(entries)
            groups = group_numbers([key for key, _, _ in entries])
        if not entries:
            return [], [], together
        scores = Scores.of_songs([one for _, one, _ in entries])
        vectors = [vector for _, _, vector in entries if vector is not None]
        stacked = torch.stack(vectors) if vectors else None
        raw = self.reward.mix_scores(scores, stacked, groups)[mine].tolist()
        members = member_rewards(self.reward.mix, scores, stacked, groups)
        return raw, spread(members)[mine].tolist() if members else [], together

    def _fresh(self) -> None:
        """What a copy, an unpickled judge and a forked child make anew."""
        self._lock, self._thread = threading.Lock(), ThreadPoolExecutor(1, "judge")
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        JUDGES.add(self)

    def _answer_waiting(self) -> None:
        """Answer single calls, those that wait at the same time together."""
        batch: list[Any] = []
        with suppress(queue.Empty):
            while len(batch) < MOST_TOGETHER:
                batch.append(self._waiting.get(timeout=WAIT_SECONDS if batch else 0))
        batch = [call for call in batch if call[-1].set_running_or_notify_cancel()]
        try:
            self._answer(batch)
        except Exception:  # the mistake of one call must not fail the others
            for call in batch:
                try:
                    self._answer([call])
                except Exception as error:  # its caller gets it
                    call[-1].set_exception(error)

    def _answer(self, batch: list[Any]) -> None:
        songs = [song_of(item, rate or self.sample_rate) for item, _, rate, _ in batch]
        found = self.answers(self(songs, [prompt for _, prompt, _, _ in batch]))
        for (_, _, _, answer), result in zip(batch, found, strict=True):
            answer.set_result(result)


def _renew_judges() -> None:
    for judge in list(JUDGES):
        judge._fresh()


FRESH = ("_lock", "_thread", "_waiting")
JUDGES: weakref.WeakSet[Judge] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    # A forked child has no thread but its own, and may inherit a lock that stays locked for ever.
    os.register_at_fork(after_in_child=_renew_judges)


__all__ = ["Judge", "Judged", "Scale", "Undecodable"]
