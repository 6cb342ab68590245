"""Songs to compare, from pairs, battles or a folder with one sub-folder per system."""

from __future__ import annotations

import itertools
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apex_reward.arena.battles import audio_name, score_names, score_pairs, uuid_of
from apex_reward.audio.load import AUDIO_ENDINGS
from apex_reward.errors import DataError, listed
from apex_reward.files.tables import read_rows
from apex_reward.report.cells import counted


@dataclass(frozen=True)
class Comparison:
    """Two songs of one prompt.

    Attributes:
        prompt: its text, empty where there is none.
        songs: the two files.
        systems: who made them, or `chosen` and `rejected`.
        scores: scores of the two songs, by name; NaN where a row lacks one.
        identity: the battle's uuid, or one made of prompt and songs.
        turned: whether the table has the two the other way round.
    """

    prompt: str
    songs: tuple[Path, Path]
    systems: tuple[str, str]
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    identity: str = ""
    turned: bool = False


def read_comparisons(source: str | Path) -> list[Comparison]:
    """Comparisons of a table (`chosen`, `rejected` or `audio_a`, `audio_b`) or of a folder.

    Paths of a table are relative to its folder, else to the working directory. Rows without two
    songs are left out with a warning.

    Raises:
        DataError: nothing to compare, or the columns are not there.
    """
    path = Path(source)
    found = list(_of_folder(path) if path.is_dir() else _of_table(path))
    if not found:
        raise DataError(f"{path} has no two songs to compare")
    return list({(item.prompt, frozenset(item.songs)): item for item in found}.values())


def _of_table(path: Path) -> Iterator[Comparison]:
    rows = read_rows(path)
    columns = set().union(*rows)
    if columns >= {"chosen", "rejected"}:
        rows = [_as_battle(row) for row in rows]
    elif not columns >= {"audio_a", "audio_b"}:
        raise DataError(
            f"{path} needs the columns chosen and rejected, or audio_a and audio_b; "
            f"columns: {listed(sorted(columns), 20)}"
        )
    names = score_names(rows)
    pairs = {name: np.where(np.isinf(pair), np.nan, pair).tolist()
             for name, pair in score_pairs(rows, names).items()}  # fmt: skip
    lacking = 0
    for place, row in enumerate(rows):
        prompt, (a, b) = str(row.get("prompt") or ""), (audio_name(row, side) for side in "ab")
        if not (a and b):
            lacking += 1
            continue
        songs = _located(a, path.parent), _located(b, path.parent)
        systems = str(row.get("system_a") or ""), str(row.get("system_b") or "")
        scores = {name: tuple(pair[place]) for name, pair in pairs.items()}
        identity = uuid_of(row) or identity_of(prompt, songs)
        turned = systems[0] > systems[1]  # one order per pair of systems, to balance sides
        if turned:
            songs, systems = songs[::-1], systems[::-1]
            scores = {name: pair[::-1] for name, pair in scores.items()}
        yield Comparison(prompt, songs, systems, scores, identity, turned)
    if lacking:
        left_out = f"{counted(lacking, 'row')} without two songs, left out"
        warnings.warn(f"{path}: {left_out}", stacklevel=3)


def _as_battle(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair's row in the columns of a battle."""
    row: dict[str, Any] = {"prompt": pair.get("prompt")}
    for side, system in (("a", "chosen"), ("b", "rejected")):
        row |= {f"audio_{side}": pair.get(system), f"system_{side}": system}
        row |= {
            f"{name.removeprefix(f'{system}_')}_{side}": value
            for name, value in pair.items()
            if name.startswith(f"{system}_")
        }
    return row


def _located(name: str, folder: Path) -> Path:
    beside = folder / name
    return (beside if beside.exists() else Path(name)).absolute()


def identity_of(prompt: str, songs: tuple[Path, Path], *more: str) -> str:
    """A uuid of prompt, songs in either order, and further texts."""
    parts = [prompt, *sorted(map(str, songs)), *more]
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "\0".join(parts)))


def _of_folder(path: Path) -> Iterator[Comparison]:
    systems = {
        child.name: {
            song.name: song.absolute()
            for song in sorted(child.iterdir())
            if song.suffix.lower() in AUDIO_ENDINGS
        }
        for child in sorted(path.iterdir())
        if child.is_dir()
    }
    for a, b in itertools.combinations(systems, 2):
        for name in systems[a]:
            if name in systems[b]:
                songs = systems[a][name], systems[b][name]
                yield Comparison("", songs, (a, b), identity=identity_of("", songs))
