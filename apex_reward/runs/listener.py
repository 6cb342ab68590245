"""What a policy of tokens plays, as a reward hears it: rows of candidates, with figures to log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apex_reward.demo.notes import SONG_SECONDS, note_references
from apex_reward.errors import UsageError
from apex_reward.rewards.groups import everywhere, prompt_keys
from apex_reward.rewards.judge import Judge
from apex_reward.runs.log import RunLog
from apex_reward.runs.policy import Policy, PolicySettings, sample_tokens
from apex_reward.runs.settings import RewardSettings, build_holdout, build_judge

Row = dict[str, Any]


def policy_judge(
    settings: RewardSettings, named: PolicySettings, policy: Policy, guards: str = "penalty"
) -> Judge:
    """The reward of the settings, and the songs that the policy's should be like.

    Args:
        guards: where the settings say nothing.
    """
    seconds = SONG_SECONDS if named.toy else None
    return build_judge(
        settings, policy.decode.sample_rate, note_references, seconds, None, guards=guards
    )


def holdout_judge(settings: RewardSettings, named: PolicySettings, policy: Policy) -> Judge | None:
    """The held-out reward of the settings; None where they name none."""
    loading: dict[str, Any] = {"segment_seconds": SONG_SECONDS} if named.toy else {}
    reward = build_holdout(settings, **loading)
    return (
        None
        if reward is None
        else Judge(reward, sample_rate=policy.decode.sample_rate, undecodable=None)
    )


def split_prompts(prompts: list[str]) -> tuple[list[str], list[str]]:
    """Every sixth prompt is held out; the others (all, where there are none) are trained on.

    >>> split_prompts(["a", "b", "c", "d", "e", "f", "g"])
    (['a', 'g'], ['b', 'c', 'd', 'e', 'f'])
    """
    return prompts[::6], [p for i, p in enumerate(prompts) if i % 6] or prompts


class Listener:
    """Draws songs of a policy and judges them.

    Args:
        policy: what plays.
        judge: what scores the songs.
        max_new_tokens: of a song.

    Attributes:
        figures: what to log of the latest songs.
    """

    def __init__(self, policy: Policy, judge: Judge, max_new_tokens: int) -> None:
        self.policy, self.judge, self.max_new_tokens = policy, judge, max_new_tokens
        self.figures: dict[str, float] = {}

    def songs(
        self, each: int, seed: int, model: Any = None, prompts: Sequence[str] | None = None
    ) -> list[Row]:
        """Candidates as rows for `build_pairs`, with `ids`; `reward` is None of what is no song.

        Args:
            each: songs of a prompt.
            model: in place of the policy's.
            prompts: in place of the policy's.

        Raises:
            UsageError: as `text`.
        """
        texts = self.policy.prompts if prompts is None else list(prompts)
        tokens = sample_tokens(
            self.policy, texts, each, seed=seed, max_new_tokens=self.max_new_tokens, model=model
        )
        asked = [(number, k) for number in range(len(texts)) for k in range(each)]
        keys = prompt_keys(texts[number] for number, _ in asked)
        judged = self.judge(self.policy.decode(tokens), [texts[number] for number, _ in asked])
        self.figures = self.judge.figures(judged, keys, everywhere)
        return [
            {
                "prompt_id": number,
                "prompt": texts[number],
                "audio": f"prompt{number:03d}_{k:02d}.wav",
                "tokens": self.text(ids),
                "ids": ids,
                "reward": reward,
            }
            for (number, k), ids, reward in zip(asked, tokens, judged.rewards, strict=True)
        ]

    def text(self, ids: list[int]) -> str:
        """What a trainer of texts will tokenize.

        Raises:
            UsageError: it would come back as other ids.
        """
        text: str = self.policy.tokenizer.decode(ids)
        if self.policy.tokenizer(text, add_special_tokens=False).input_ids != ids:
            raise UsageError(
                "this tokenizer does not give its own tokens back; a trainer would see others"
            )
        return text

    def save(self, log: RunLog, name: str, rows: Sequence[Row]) -> None:
        """The first song of four prompts, into `audio/`."""
        firsts = [row for row in rows if row["audio"].endswith("_00.wav")][:4]
        decoded = self.policy.decode([row["ids"] for row in firsts])
        for row, song in zip(firsts, decoded, strict=True):
            stem = row["audio"].removesuffix(".wav")
            log.song(f"{name}_{stem}", song, self.policy.decode.sample_rate)


def mean_reward(rows: Sequence[Row]) -> float | None:
    """Of the songs that have one; None of none."""
    known = [row["reward"] for row in rows if row["reward"] is not None]
    return sum(known) / len(known) if known else None
