"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.compare.songs import Name, Song, paired
from apex_reward.files.tables import write_json
from apex_reward.report.cells import Player, counted
from apex_reward.report.charts import Entry, forest
from apex_reward.report.document import Block, Grid, Heading, Picture, Words, write_document
from apex_reward.report.songs import place_songs

SHOWN = 8
TITLES = {
    "heads": "Heads",
    "holdout": "Held-out rewards",
    "rulers": "Rulers",
    "guards": "Guards: share of songs on which they trip",
}
TONES = {"rose": "good", "fell": "bad", "undetermined": "neutral"}


def summary(metrics: Mapping[str, Any]) -> list[Block]:
    """The verdict and the figures, as a terminal shows them."""
    claim = (metrics["reward"] or {"claim": ""})["claim"]
    tone = {"rose": "good", "fell": "warning"}.get(claim, "plain")
    blocks: list[Block] = [Words(metrics["verdict"], tone)]
    if metrics["reward"] is not None:
        blocks += [Heading("Reward"), _grid({"reward": metrics["reward"]})]
    for kind, title in TITLES.items():
        if metrics[kind]:
            blocks += [Heading(title), _grid(metrics[kind])]
    blocks.append(Heading("Diversity and distances"))
    rows = [
        [f"{group}, {name}", entry["before"], entry["after"]]
        for group in ("diversity", "distances")
        for name, entry in metrics.get(group, {}).items()
    ]
    return [*blocks, Grid(("figure", "before", "after"), rows, "Diversity and distances")]


def write_comparison(
    folder: Path, metrics: Mapping[str, Any], before: Sequence[Song], after: Sequence[Song]
) -> None:
    """Write `metrics.json`, `report.html` and `report.md` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    verdict, *figures = summary(metrics)
    entries = [
        Entry(name, value, None, TONES[entry["claim"]], entry["claim"])
        for name, value in metrics["deviations"].items()
        if (entry := metrics["reward"] if name == "reward" else metrics["heads"].get(name))
    ]
    songs = metrics["n_songs"]
    subtitle = (
        f"{counted(metrics['n_prompts'], 'prompt')}, {counted(songs['before'], 'song')} before and "
        f"{songs['after']} after"
    )
    note = "Difference after less before, in standard deviations of the songs before."
    blocks = [
        verdict,
        Heading("What changed", note),
        Picture("Reward and heads", forest(entries, "deviations", 0.0), "changes", wide=True),
        *_moved(folder, before, after),
        *figures,
    ]
    write_document(folder, "Before and after", subtitle, blocks)
    write_json(folder / "metrics.json", metrics)


def _grid(entries: Mapping[str, Any]) -> Grid:
    columns = ("name", "before", "after", "difference", "95%", "p", "claim")
    rows = [
        [name, e["before"], e["after"], e["difference"],
         None if e["ci95"] is None else f"{e['ci95'][0]:.3f} to {e['ci95'][1]:.3f}",
         e["p_value"], e["claim"]]
        for name, e in entries.items()
    ]  # fmt: skip
    return Grid(columns, rows, "Figures")


def _moved(folder: Path, before: Sequence[Song], after: Sequence[Song]) -> list[Block]:
    """The prompts whose songs moved most in the reward, or in the first head, side by side."""
    groups = paired(before, after)
    name: Name = next(iter(groups[0][1][0][0].values))
    rows = []
    for prompt, both in groups:
        values = [sum(song.values[name] for song in side) / len(side) for side in both]
        # Of each side the song that is nearest to the prompt's mean.
        songs = [
            min(side, key=lambda song: (abs(song.values[name] - value), song.path))
            for side, value in zip(both, values, strict=True)
        ]
        rows.append((values[1] - values[0], prompt, values, songs))
    rows = sorted(rows, key=lambda row: (-abs(row[0]), row[1]))[:SHOWN]
    files = [Path(song.path) for row in rows for song in row[3]]
    there = [file if file.is_file() else None for file in files]
    sources, words = place_songs(there, folder)
    players = [
        Player(file.name, source, f"{side}, {row[1]}")
        for file, source, (row, side) in zip(
            files,
            sources,
            ((row, side) for row in rows for side in ("before", "after")),
            strict=True,
        )
    ]
    cells = [
        [row[1], players[2 * at], players[2 * at + 1], *row[2], row[0]]
        for at, row in enumerate(rows)
    ]
    shown = name[1] or name[0]
    columns = ("prompt", "before", "after", f"{shown} before", f"{shown} after", "difference")
    return [
        Heading("The songs that moved most", f"By {shown}; the largest change first."),
        Grid(columns, cells, "The songs that moved most"),
        *([Words(words)] if words else []),
    ]
