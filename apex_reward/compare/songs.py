"""A set of songs with their prompts, scores, rulers and guards."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from apex_reward.errors import DataError
from apex_reward.prompt import prompt_of
from apex_reward.rewards.engine import SongResult
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import song_row
from apex_reward.scoring.inputs import Input, find_songs

Name = tuple[str, str]
"""A figure's kind and name: `reward`, `heads`, `holdout`, `rulers` or `guards`, and `clarity`."""


@dataclass(frozen=True)
class Song:
    """A song that every model can judge.

    Attributes:
        path: of its file.
        prompt: name of its prompt.
        values: its figures. A guard's is 1 where it trips, else 0.
        vector: (W,) features of the reward's first encoder; None where it has no encoder.
    """

    path: str
    prompt: str
    values: dict[Name, float]
    vector: Tensor | None = None


Group = tuple[str, tuple[list[Song], list[Song]]]
"""A prompt and its songs before and after."""


@dataclass(frozen=True)
class Judges:
    """The models that measure the songs.

    Args:
        reward: gives the heads, and with `rewarded` the reward. Without guards of its own all
            default guards are measured.
        rewarded: whether the reward has a mix that counts.
        holdout: models that the fine-tune did not use.
        device: of the rulers.
    """

    reward: Reward
    rewarded: bool = False
    holdout: Reward | None = None
    device: str | None = None
    kinds: dict[str, Reward] = field(init=False)
    """The rewards by the kind of their heads."""

    def __post_init__(self) -> None:
        model = load_reward_model("rulers", device=self.device)
        rulers = Reward(model, guards=None if self.reward.guards.guards else "flag")
        held = {} if self.holdout is None else {"holdout": self.holdout}
        object.__setattr__(self, "kinds", {"heads": self.reward, **held, "rulers": rulers})


def measure_songs(
    source: str,
    judges: Judges,
    workers: int = 0,
    on_song: Callable[[], None] = lambda: None,
) -> tuple[list[Song], list[str]]:
    """The songs of a folder or list, and a line `path: reason` for each that cannot be judged.

    Args:
        source: a folder or glob, in which a song's prompt is its relative path without ending and
            without a trailing `_<digits>`; or a list with a column `prompt`. A model that reads
            text gets the prompt, too.
        workers: decoding processes.
        on_song: called for each song and model.
    """
    inputs = find_songs([source])
    names = [prompt_name(song, source) for song in inputs]
    texts = [
        prompt_of(song.columns.get("prompt") or name, song.columns.get("lyrics"))
        for song, name in zip(inputs, names, strict=True)
    ]
    values: list[dict[Name, float]] = [{} for _ in inputs]
    vectors: list[Tensor | None] = [None] * len(inputs)
    failed: dict[str, str] = {}
    for kind, reward in judges.kinds.items():
        results = reward.results(
            [song.path for song in inputs], texts if reward.model.reads_text else None,
            workers=workers,
        )  # fmt: skip
        for number, result in enumerate(results):
            on_song()
            if result.error is not None:
                failed.setdefault(inputs[number].path, result.error)
                continue
            values[number] |= _figures(kind, reward, result, judges.rewarded and kind == "heads")
            if kind == "heads":
                vectors[number] = result.vector
    songs = [
        Song(song.path, name, own, vector)
        for song, name, own, vector in zip(inputs, names, values, vectors, strict=True)
        if song.path not in failed
    ]
    return songs, [f"{path}: {reason}" for path, reason in failed.items()]


def _figures(kind: str, reward: Reward, result: SongResult, rewarded: bool) -> dict[Name, float]:
    row = song_row(reward, result, rewarded)
    found: dict[Name, float] = {("reward", ""): row["reward"]} if rewarded else {}
    found |= {(kind, head.name): row[head.name] for head in reward.heads}
    return found | {("guards", name): float(name in row["flags"]) for name in reward.guards.names}


def prompt_name(song: Input, source: str) -> str:
    """The name of a song's prompt.

    >>> prompt_name(Input("made/jazz/trio_03.wav"), "made")
    'trio'
    """
    if (prompt := song.columns.get("prompt")) is not None and str(prompt).strip():
        return str(prompt).strip()
    inside = os.path.isdir(source)
    name = os.path.relpath(song.path, source) if inside else os.path.basename(song.path)
    return re.sub(r"_\d+$", "", Path(name).with_suffix("").as_posix())


def paired(before: Sequence[Song], after: Sequence[Song]) -> list[Group]:
    """Each prompt that has songs on both sides, in the order of names, with its songs by path.

    Raises:
        DataError: no prompt has songs on both sides.
    """
    sides: list[dict[str, list[Song]]] = [{}, {}]
    for side, songs in zip(sides, (before, after), strict=True):
        for song in sorted(songs, key=lambda song: song.path):
            side.setdefault(song.prompt, []).append(song)
    both = sorted(set(sides[0]) & set(sides[1]))
    if not both:
        shown = [", ".join(sorted(side)[:3]) or "none" for side in sides]
        raise DataError(
            f"no prompt has songs on both sides; prompts before: {shown[0]}; after: {shown[1]}. A "
            "prompt is a file's path in the folder without ending and without _<digits>"
        )
    return [(prompt, (sides[0][prompt], sides[1][prompt])) for prompt in both]
