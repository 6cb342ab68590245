"""Stacks that ask for one song at a time: calls that come together are judged together.

Shape key: T = samples, C = channels.
"""

from __future__ import annotations

import math
import queue
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.rewards.reward import Models, Reward, as_reward
from apex_reward.rewards.songs import TensorSong
from apex_reward.rewards.stacks.batch import BatchJudge
from apex_reward.rewards.stacks.songs import prompt_texts, song_of
from apex_reward.scores.mix import RewardMix

Result = dict[str, Any]
WAIT_SECONDS = 0.02
# Special tokens around a text: words in angle or square brackets.
SPECIALS = re.compile(r"^(\s*(<[^<>\s]+>|\[[A-Z_]+\]))+|((<[^<>\s]+>|\[[A-Z_]+\])\s*)+$")
MOST = 64


class StackJudge:
    """Songs of any form to finite results, for stacks that refuse None.

    Args:
        reward: a `Reward`, or models for their default mix.
        sample_rate: Hz of waveforms that come without one; None takes the reward's.
        undecodable: reward of what is no song; None takes the lowest that the mix can give.

    Raises:
        UsageError: a mix normalised by group, or one without a lowest reward and no `undecodable`.
    """

    def __init__(
        self,
        reward: Reward | Models,
        sample_rate: int | None = None,
        undecodable: float | None = None,
    ) -> None:
        self.reward = as_reward(reward)
        self.reward.check_single()
        self.sample_rate = sample_rate or self.reward.sample_rate
        self.undecodable = self._lowest() if undecodable is None else undecodable
        self._judge = BatchJudge(self.reward)

    def __call__(self, items: Sequence[Any], prompts: Sequence[Any]) -> list[Result]:
        """A result per item: `score` (after guards), `reward_raw`, the heads, `flags`, `decoded`.

        Args:
            items: as `song_of` takes them; None for what is no song.
            prompts: texts or message lists, one per item.
        """
        songs: list[TensorSong | None] = [song_of(item, self.sample_rate) for item in items]
        batch = self._judge(songs, prompt_texts(prompts))
        heads = [head.name for head in self.reward.heads]
        nothing = {"score": self.undecodable, "reward_raw": self.undecodable,
                   **dict.fromkeys(heads, 0.0), "flags": "", "decoded": 0.0}  # fmt: skip
        results: list[Result] = [dict(nothing) for _ in items]
        rows = [] if batch.scores is None else batch.scores.rows()
        for i, row, raw, flags in zip(batch.present, rows, batch.raw, batch.flags, strict=True):
            score = self.reward.guarded(raw, flags)
            results[i] = {"score": score, "reward_raw": raw, **{h: row[h] for h in heads},
                          "flags": ";".join(flags), "decoded": 1.0}  # fmt: skip
        return results

    def _lowest(self) -> float:
        mix = self.reward.mix
        lowest = mix.lowest(1, self.reward.heads) if isinstance(mix, RewardMix) else -math.inf
        if not math.isfinite(lowest):
            raise UsageError(
                "this mix has no lowest reward; give undecodable=, what a completion that is no "
                "song earns"
            )
        return lowest


class SingleJudge:
    """One song a call, from many threads or coroutines; those that wait are judged as one batch.

    Args:
        judge: what judges.
        wait: seconds that a call waits for others.
    """

    def __init__(self, judge: StackJudge, wait: float = WAIT_SECONDS) -> None:
        self.judge, self.wait = judge, wait
        self._thread: threading.Thread | None = None
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"judge": self.judge, "wait": self.wait}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def submit(self, item: Any, prompt: Any) -> Future[Result]:
        """The result of one song, once its batch is judged."""
        answer: Future[Result] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
                self._thread.start()
        self._waiting.put((item, prompt, answer))
        return answer

    def _start(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Any, Any, Future[Result]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = None

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < MOST:
                try:
                    batch.append(self._waiting.get(timeout=self.wait))
                except queue.Empty:
                    break
            try:
                results = self.judge([i for i, _, _ in batch], [p for _, p, _ in batch])
            except Exception as error:  # the callers get it; the thread goes on
                for _, _, answer in batch:
                    answer.set_exception(error)
                continue
            for (_, _, answer), result in zip(batch, results, strict=True):
                answer.set_result(result)


@cache
def judge_of(reward: str, sample_rate: int | None, undecodable: float | None) -> SingleJudge:
    """The judge of a reward file or model name; one per process, however often it is asked for."""
    loaded = Reward.load(reward) if reward.endswith((".yaml", ".yml")) else Reward(reward)
    return SingleJudge(StackJudge(loaded, sample_rate, undecodable))


def path_in(query: str, prompt: str = "") -> str | None:
    """The path that a completion is; None where it is nothing.

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
