"""`report.html`: margins, drops and balance plotted, and pairs to listen to side by side.

One self-contained file: its plots are inline, its script is plain, and the songs of a small set
are embedded; those of a large one are referenced relative to the report.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
from collections import Counter
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from apex_reward.files.tables import write_text
from apex_reward.pairs import plots
from apex_reward.pairs.audio_facts import resolve
from apex_reward.pairs.build import PairSet

MOST_PAIRS = 5_000
"""Pairs in the list, those with the smallest margins; the plots show all."""
EMBED_BYTES = 16_000_000
"""Songs are embedded when all that are listed fit in this together."""


def write_report(result: PairSet, output: str | Path, folder: Path | None = None) -> None:
    """Write `report.html` into the folder `output`.

    Args:
        result: what `build` returned.
        output: the folder of the report, from which songs are referenced.
        folder: where relative audio paths are tried next to the working directory.
    """
    output = Path(output)
    page = files("apex_reward.pairs").joinpath("report_page.html").read_text(encoding="utf-8")
    listed = np.argsort(result.margin, kind="stable")[:MOST_PAIRS]
    parts = {
        "subtitle": _subtitle(result),
        "tiles": _tiles(result),
        "differences": _differences(result),
        "dropped": _dropped(result),
        "balance": _balance(result),
        "balance_note": "Chosen less rejected: a pair set whose chosen songs are longer or louder "
        "teaches length or level too.",
        "list_note": _list_note(result, len(listed)),
        "data": _data(result, listed, output, folder),
    }
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text, 1)
    write_text(output / "report.html", page)


def _subtitle(result: PairSet) -> str:
    options = result.options
    others = [axis for axis in options.involved if axis != options.primary]
    text = f"Strategy {options.strategy_name} on {options.primary}"
    return escape(text + (f", with {', '.join(others)}." if others else "."))


def _tiles(result: PairSet) -> str:
    candidates = result.candidates
    figures = {
        "pairs": len(result.winner),
        "in train": int((~result.test).sum()),
        "in test": int(result.test.sum()),
        "prompts with a pair": len(np.unique(candidates.prompt[result.winner])),
        "candidates": len(candidates),
        "candidates in no pair": int((~result.dropped.open).sum()),
    }
    return "".join(
        f'<div class="tile"><b>{number:,}</b><span>{name}</span></div>'
        for name, number in figures.items()
    )


def _differences(result: PairSet) -> str:
    options, axes = result.options, result.candidates.axes
    figures = [plots.histogram("Margin", f"chosen less rejected, {options.primary}", result.margin)]
    for axis in options.involved:
        if axis != options.primary:
            lead = axes[axis][result.winner] - axes[axis][result.loser]
            lost = f"; the rejected is ahead in {(lead < 0).mean():.0%}" if len(lead) else ""
            figures.append(plots.histogram(axis, f"chosen less rejected{lost}", lead))
    return "".join(figures)


def _dropped(result: PairSet) -> str:
    return plots.bars("Candidates", "in no pair, by reason", result.dropped.counts()) + plots.bars(
        "Pairs", "proposed by the strategy, removed by a filter", result.removed.counts()
    )


def _balance(result: PairSet) -> str:
    candidates, w, low = result.candidates, result.winner, result.loser
    seconds = candidates.duration[w] - candidates.duration[low]
    loudness = candidates.loudness[w] - candidates.loudness[low]
    figures = [
        plots.histogram("Duration", _mean_note(seconds, "s"), seconds),
        plots.histogram("Loudness", _mean_note(loudness, "LU"), loudness),
    ]
    groups = candidates.column("group")
    if groups is not None:
        chosen = Counter(str(groups[i]) for i in w.tolist())
        rejected = Counter(str(groups[i]) for i in low.tolist())
        names = chosen.keys() | rejected.keys()
        figures.append(
            plots.sides(
                "Group",
                f"times chosen (upper bar) / rejected (lower bar), the largest of {len(names)}",
                {name: (chosen[name], rejected[name]) for name in names},
            )
        )
    return "".join(figures)


def _mean_note(difference: Any, unit: str) -> str:
    known = difference[np.isfinite(difference)]
    if not len(known):
        return "not known for these candidates"
    return f"chosen less rejected in {unit}, mean {known.mean():+.3g}, {len(known)} pairs"


def _list_note(result: PairSet, shown: int) -> str:
    return (
        f"{shown:,} of {len(result.winner):,}, smallest margins first. "
        "A click on a heading sorts by it, another one turns the order."
    )


def _data(result: PairSet, listed: Any, output: Path, folder: Path | None) -> str:
    candidates, axes = result.candidates, result.options.involved
    prompts = candidates.table["prompt"]
    audio = candidates.table["audio"]
    number: dict[int, int] = {}
    pairs = []
    margin = result.margin
    for at in listed.tolist():
        w, low = int(result.winner[at]), int(result.loser[at])
        pair: dict[str, Any] = {
            "prompt": prompts[w].as_py(),
            "split": "test" if result.test[at] else "train",
            "margin": float(margin[at]),
            "chosen": number.setdefault(w, len(number)),
            "rejected": number.setdefault(low, len(number)),
        }
        for i, axis in enumerate(axes):
            ours, theirs = float(candidates.axes[axis][w]), float(candidates.axes[axis][low])
            pair[f"axis{i}"], pair[f"shown{i}"] = ours - theirs, f"{ours:.3f} / {theirs:.3f}"
        pairs.append(pair)
    columns = [
        {"key": "prompt", "title": "Prompt", "kind": "text"},
        {"key": "split", "title": "Split", "kind": "text"},
        {"key": "margin", "title": "Margin", "kind": "number", "start": True},
        *(
            {"key": f"axis{i}", "shown": f"shown{i}", "title": axis, "kind": "number"}
            for i, axis in enumerate(axes)
        ),
    ]
    songs = _songs([audio[i].as_py() for i in number], output, folder)
    text = json.dumps(
        {"columns": columns, "pairs": pairs, "songs": songs}, ensure_ascii=False, allow_nan=False
    )
    # "</script>" in a prompt must not end the script element.
    return text.replace("<", "\\u003c")


def _songs(paths: list[str], output: Path, folder: Path | None) -> list[dict[str, Any]]:
    """Label and source of each listed song; the source is None where there is no file."""
    found = [resolve(path, folder) for path in paths]
    size = sum(file.stat().st_size for file in found if file is not None)
    return [
        {
            "label": path,
            "source": None
            if file is None
            else (_embedded(file) if size <= EMBED_BYTES else _reference(file, output)),
        }
        for path, file in zip(paths, found, strict=True)
    ]


def _embedded(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "audio/mpeg"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def _reference(file: Path, output: Path) -> str:
    return quote(os.path.relpath(file.resolve(), output.resolve()).replace(os.sep, "/"))
