"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.compare.songs import Song, paired
from apex_reward.files.tables import write_json
from apex_reward.report import document
from apex_reward.report.cells import counted
from apex_reward.report.document import Block, Grid, Heading, Words, record_grid
from apex_reward.report.songs import players

SHOWN = 8
TITLES = {
    "heads": "Heads",
    "holdout": "Held-out rewards",
    "rulers": "Rulers",
    "guards": "Guards: share of songs on which they trip",
}
SIDES = {"before": "before", "after": "after"}
COLUMNS = {**SIDES, "difference": "difference", "95%": "ci95", "p": "p_value", "claim": "claim"}


def summary(metrics: Mapping[str, Any]) -> list[Block]:
    """The verdict and the figures, as a terminal shows them."""
    reward = metrics["reward"]
    tones = {"rose": "good", "fell": "warning"}
    tone = tones.get(reward["claim"], "plain") if reward else "plain"
    tables = {"Reward": {"reward": reward} if reward else {}}
    tables |= {title: metrics[kind] for kind, title in TITLES.items()}
    blocks: list[Block] = [Words(metrics["verdict"], tone)]
    for title, entries in tables.items():
        if entries:
            blocks += [Heading(title), record_grid("name", entries.items(), COLUMNS, "Figures")]
    others = [
        (f"{group}, {name}", entry)
        for group in ("diversity", "distances")
        for name, entry in metrics.get(group, {}).items()
    ]
    title = "Diversity and distances"
    return [*blocks, Heading(title), record_grid("figure", others, SIDES, title)]


def write_comparison(
    folder: Path, metrics: Mapping[str, Any], before: Sequence[Song], after: Sequence[Song]
) -> None:
    """Write `metrics.json`, `report.html` and `report.md` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    verdict, *figures = summary(metrics)
    songs = metrics["n_songs"]
    subtitle = (
        f"{counted(metrics['n_prompts'], 'prompt')}, {counted(songs['before'], 'song')} before and "
        f"{songs['after']} after"
    )
    blocks = [verdict, *_moved(folder, before, after), *figures]
    document.write_document(folder, "Before and after", subtitle, blocks)
    write_json(folder / "metrics.json", metrics)


def _moved(folder: Path, before: Sequence[Song], after: Sequence[Song]) -> list[Block]:
    """The prompts whose songs moved most in the reward, or in the first head, side by side."""
    groups = paired(before, after)
    name = next(iter(groups[0][1][0][0].values))
    rows: list[list[Any]] = []
    for prompt, both in groups:
        values = [sum(song.values[name] for song in side) / len(side) for side in both]
        # Of each side the song that is nearest to the prompt's mean.
        nearest = [
            min((abs(song.values[name] - value), song.path) for song in side)[1]
            for side, value in zip(both, values, strict=True)
        ]
        rows.append([prompt, *map(Path, nearest), *values, values[1] - values[0]])
    rows = sorted(rows, key=lambda row: (-abs(row[-1]), row[0]))[:SHOWN]
    songs = [
        (file.name, file if file.is_file() else None, f"{side}, {row[0]}")
        for row in rows
        for side, file in zip(("before", "after"), row[1:3], strict=True)
    ]
    made, words = players(songs, folder)
    cells = [[row[0], *made[2 * at : 2 * at + 2], *row[3:]] for at, row in enumerate(rows)]
    shown = name[1] or name[0]
    columns = ("prompt", "before", "after", f"{shown} before", f"{shown} after", "difference")
    title = "The songs that moved most"
    note = f"By {shown}; the largest change first. {words}".strip()
    return [Heading(title, note), Grid(columns, cells, title)]
