"""Songs to compare, from pairs, battles or a folder with one sub-folder per system."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apex_reward.audio.load import AUDIO_ENDINGS
from apex_reward.errors import DataError, listed
from apex_reward.files.tables import read_table


@dataclass(frozen=True)
class Comparison:
    """Two songs of one prompt; `margin` is a model's difference between them, where known."""

    prompt: str
    songs: tuple[Path, Path]
    systems: tuple[str, str]
    margin: float | None = None


def read_comparisons(source: str | Path) -> list[Comparison]:
    """Comparisons of a table (`chosen`, `rejected` or `audio_a`, `audio_b`) or of a folder.

    Paths of a table are taken from the table's folder, else from the working directory.

    Raises:
        DataError: nothing to compare, or the columns are not there.
    """
    path = Path(source)
    found = _of_folder(path) if path.is_dir() else _of_table(path)
    if not found:
        raise DataError(f"{path} holds no two songs to compare")
    return list({(item.prompt, frozenset(item.songs)): item for item in found}.values())


def _of_table(path: Path) -> list[Comparison]:
    table = read_table(path)
    columns = set(table.column_names)
    for names, systems in (
        (("chosen", "rejected"), ("chosen", "rejected")),
        (("audio_a", "audio_b"), None),
    ):
        if columns.issuperset(names):
            return [_of_row(row, names, systems, path.parent) for row in table.to_pylist()]
    raise DataError(
        f"{path} needs the columns chosen and rejected, or audio_a and audio_b; "
        f"columns: {listed(sorted(columns), 20)}"
    )


def _of_row(
    row: Mapping[str, Any],
    names: tuple[str, str],
    systems: tuple[str, str] | None,
    folder: Path,
) -> Comparison:
    if not all(row[name] for name in names):
        raise DataError(f"a row lacks {names[0]} or {names[1]}; its prompt: {row.get('prompt')!r}")
    first, second = (_located(str(row[name]), folder) for name in names)
    labels = systems or (str(row.get("system_a") or ""), str(row.get("system_b") or ""))
    prompt = row.get("prompt")
    margin = row.get("margin")
    made = Comparison(
        "" if prompt is None else str(prompt),
        (first, second),
        labels,
        None if margin is None else abs(float(margin)),
    )
    if systems is None and labels[0] > labels[1]:  # one order per pair of systems, to balance sides
        return Comparison(made.prompt, (second, first), (labels[1], labels[0]), made.margin)
    return made


def _located(name: str, folder: Path) -> Path:
    beside = folder / name
    return (beside if beside.exists() else Path(name)).absolute()


def _of_folder(path: Path) -> list[Comparison]:
    systems = {
        child.name: {
            song.name: song.absolute()
            for song in sorted(child.iterdir())
            if song.suffix.lower() in AUDIO_ENDINGS
        }
        for child in sorted(path.iterdir())
        if child.is_dir()
    }
    return [
        Comparison("", (systems[a][name], systems[b][name]), (a, b))
        for a, b in itertools.combinations(systems, 2)
        for name in systems[a]
        if name in systems[b]
    ]
