"""A set of songs with their prompts, scores, rulers and guards."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from apex_reward.errors import DataError, listed
from apex_reward.prompt import prompt_of, same_text
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import song_row
from apex_reward.scoring.inputs import Input, find_songs

Name = tuple[str, str]
"""A figure's kind and name: `reward`, `heads`, `holdout`, `rulers` or `guards`, and `clarity`."""


@dataclass
class Song:
    """A song that every model can judge.

    Attributes:
        path: of its file.
        prompt: name of its prompt.
        values: its figures, of all songs in one order. A guard's is 1 where it trips, else 0.
        vector: (W,) features of the reward's first encoder; None where it has no encoder.
    """

    path: str
    prompt: str
    values: dict[Name, float]
    vector: Tensor | None = None


Group = tuple[str, tuple[list[Song], list[Song]]]
"""A prompt and its songs before and after."""


def judges(
    reward: Reward, holdout: Reward | None = None, device: str | None = None
) -> dict[str, Reward]:
    """The rewards that measure songs, by the kind of their heads.

    Args:
        reward: gives the heads. Without guards of its own all default guards are measured.
        holdout: models that the fine-tune did not use.
        device: of the rulers.
    """
    model = load_reward_model("rulers", device=device)
    rulers = Reward(model, guards=None if reward.guards.guards else "flag")
    return {"heads": reward, **({"holdout": holdout} if holdout else {}), "rulers": rulers}


def measure_songs(
    source: str,
    judges: Mapping[str, Reward],
    rewarded: bool = False,
    workers: int = 0,
    on_song: Callable[[], None] = lambda: None,
) -> tuple[list[Song], list[str]]:
    """The songs of a folder or list, and a line `path: reason` for each that cannot be judged.

    Args:
        source: a folder or glob, in which a song's prompt is its relative path (in a glob from the
            last folder without a wildcard) without ending and without a trailing `_<digits>`; or a
            list with a column `prompt`. A model that reads text gets the prompt, too.
        judges: as `judges` gives them.
        rewarded: whether the reward has a mix that counts.
        workers: decoding processes.
        on_song: called for each song and model.
    """
    inputs = find_songs([source])
    songs = [Song(item.path, prompt_name(item, source), {}) for item in inputs]
    texts = [
        prompt_of(item.columns.get("prompt") or song.prompt, item.columns.get("lyrics"))
        for item, song in zip(inputs, songs, strict=True)
    ]
    failed: dict[str, str] = {}
    for kind, reward in judges.items():
        prompts = texts if reward.model.reads_text else None
        results = reward.results([song.path for song in songs], prompts, workers=workers)
        for song, result in zip(songs, results, strict=True):
            on_song()
            if result.error is not None:
                failed.setdefault(song.path, result.error)
                continue
            row = song_row(reward, result, rewarded and kind == "heads")
            if kind == "heads":
                song.vector = result.vector
                song.values |= {("reward", ""): row["reward"]} if rewarded else {}
            song.values |= {(kind, head.name): row[head.name] for head in reward.heads}
            tripped = reward.guards.flags(result.measured)
            song.values |= {("guards", g): float(g in tripped) for g in reward.guards.names}
    lines = [f"{path}: {reason}" for path, reason in failed.items()]
    return [song for song in songs if song.path not in failed], lines


def prompt_name(song: Input, source: str) -> str:
    """The name of a song's prompt.

    >>> prompt_name(Input("made/jazz/trio_03.wav"), "made/*/*.wav")
    'jazz/trio'
    >>> prompt_name(Input("made/jazz/trio_03.wav"), "list.csv")
    'trio'
    """
    if (prompt := song.columns.get("prompt")) is not None and str(prompt).strip():
        return str(prompt).strip()
    name, fixed = os.path.basename(song.path), re.split(r"[*?[]", source)[0]
    if os.path.isdir(source) or fixed != source:  # a folder or a glob
        folder = source if os.path.isdir(source) else os.path.dirname(fixed)
        name = os.path.relpath(song.path, folder or ".")
    return re.sub(r"_\d+$", "", Path(name).with_suffix("").as_posix())


def paired(before: Sequence[Song], after: Sequence[Song]) -> list[Group]:
    """Each prompt that has songs on both sides, in the order of names, with its songs by path.

    Raises:
        DataError: no prompt has songs on both sides.
    """
    groups: dict[str, tuple[list[Song], list[Song]]] = {}
    for side, songs in enumerate((before, after)):
        for song in sorted(songs, key=lambda song: song.path):
            groups.setdefault(same_text(song.prompt), ([], []))[side].append(song)
    both = [(sides[0][0].prompt, sides) for _, sides in sorted(groups.items()) if all(sides)]
    if not both:
        one, other = (listed(sorted({s.prompt for s in songs}), 3) for songs in (before, after))
        raise DataError(
            f"no prompt has songs on both sides; prompts before: {one or 'none'}; after: "
            f"{other or 'none'}. A prompt is a file's path in the folder without ending and "
            "without _<digits>"
        )
    return both
