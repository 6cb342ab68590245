"""`report.html`: margins, drops and balance plotted, and pairs to listen to side by side.

Its plots and script are inside it, and the songs of a small set too; those of a larger one are
copied beside it, so that the folder opens anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex_reward.files.tables import write_text
from apex_reward.pairs.audio_facts import song_file
from apex_reward.pairs.build import PairSet
from apex_reward.report import charts
from apex_reward.report.cells import visible
from apex_reward.report.document import Picture, render
from apex_reward.report.figures import save_figure
from apex_reward.report.songs import place_songs

MOST_PAIRS = 5_000
"""Pairs in the list, those with the smallest margins; the plots show all."""
LEAD = "chosen less rejected"


def write_report(
    result: PairSet, output: str | Path, folder: Path | None = None, formats: Sequence[str] = ()
) -> None:
    """Write `report.html` into the folder `output`, and `report_files/` where songs are large.

    Args:
        result: what `build` returned.
        output: the folder of the report.
        folder: where relative audio paths are tried next to the working directory.
        formats: in which the plots are written too, as `figures/<name>.<format>`.
    """
    output = Path(output)
    sections = [
        ("How far apart the pairs are", "", _differences(result)),
        ("What was dropped, and why", "", _dropped(result)),
        (
            "How balanced the pairs are",
            "Chosen less rejected: a pair set whose chosen songs are longer or louder teaches "
            "length or level too.",
            _balance(result),
        ),
    ]
    listed = np.argsort(result.margin, kind="stable")[:MOST_PAIRS]
    data, left = _data(result, listed, output, folder)
    note = f"{len(listed):,} of {len(result.chosen):,} pairs, smallest margins first. {left}"
    page = render(
        "pairs/report_page.html",
        title="Preference pairs",
        subtitle=_subtitle(result),
        tiles=_tiles(result),
        sections=sections,
        list_note=note.strip(),
        data=data,
    )
    write_text(output / "report.html", page)
    for _, _, pictures in sections:
        for picture in pictures:
            save_figure(picture.figure, output / "figures" / picture.name, formats)


def _subtitle(result: PairSet) -> str:
    options = result.options
    others = [axis for axis in options.involved if axis != options.primary]
    text = f"Strategy {options.strategy_name} on {options.primary}"
    return text + (f", with {', '.join(others)}." if others else ".")


def _tiles(result: PairSet) -> dict[str, int]:
    candidates = result.candidates
    return {
        "pairs": len(result.chosen),
        "in train": int((~result.test).sum()),
        "in test": int(result.test.sum()),
        "prompts with a pair": len(np.unique(candidates.prompt[result.chosen])),
        "candidates": len(candidates),
        "candidates in no pair": int((~result.dropped.open).sum()),
    }


def _differences(result: PairSet) -> list[Picture]:
    options, axes = result.options, result.candidates.axes
    label = f"margin on {options.primary} ({LEAD})"
    figure = charts.histogram(result.margin, label, "pairs")
    pictures = [Picture("Margin", figure, "margin", f"{LEAD}, {options.primary}")]
    if result.agreement is not None:
        figure = charts.histogram(result.agreement, "members that agree (share)", "pairs")
        note = f"share of an ensemble's members with the chosen ahead on {options.primary}"
        pictures.append(Picture("Agreement", figure, "agreement", note))
    others = [axis for axis in options.involved if axis != options.primary]
    for number, axis in enumerate(others, start=1):
        lead = axes[axis][result.chosen] - axes[axis][result.rejected]
        lost = f"; the rejected is ahead in {(lead < 0).mean():.0%}" if len(lead) else ""
        figure = charts.histogram(lead, f"{axis} ({LEAD})", "pairs")
        pictures.append(Picture(axis, figure, f"axis-{number}", f"{LEAD}{lost}"))
    return pictures


def _dropped(result: PairSet) -> list[Picture]:
    candidates = charts.bars(result.dropped.counts(), "candidates")
    pairs = charts.bars(result.removed.counts(), "pairs")
    proposed = "proposed by the strategy, removed by a filter"
    return [
        Picture("Candidates", candidates, "dropped-candidates", "in no pair, by reason"),
        Picture("Pairs", pairs, "dropped-pairs", proposed),
    ]


def _balance(result: PairSet) -> list[Picture]:
    candidates, w, low = result.candidates, result.chosen, result.rejected
    seconds = candidates.duration[w] - candidates.duration[low]
    loudness = candidates.loudness[w] - candidates.loudness[low]
    pictures = [
        Picture(title, charts.histogram(lead, f"{LEAD} in {unit}", "pairs"), name, note)
        for title, name, lead, unit in (
            ("Duration", "duration", seconds, "s"),
            ("Loudness", "loudness", loudness, "LU"),
        )
        for note in [_mean_note(lead, unit)]
    ]
    groups = candidates.column("group")
    if groups is not None:
        chosen = Counter(str(groups[i]) for i in w.tolist())
        rejected = Counter(str(groups[i]) for i in low.tolist())
        names = chosen.keys() | rejected.keys()
        counts = {name: (float(chosen[name]), float(rejected[name])) for name in names}
        figure = charts.bars(counts, "times in a pair", ("chosen", "rejected"))
        note = f"times chosen / rejected, the largest of {len(names)}"
        pictures.append(Picture("Group", figure, "group", note))
    return pictures


def _mean_note(difference: Any, unit: str) -> str:
    known = difference[np.isfinite(difference)]
    if not len(known):
        return "not known for these candidates"
    return f"{LEAD} in {unit}, mean {known.mean():+.3g}, {len(known)} pairs"


def _data(
    result: PairSet, listed: Any, output: Path, folder: Path | None
) -> tuple[dict[str, Any], str]:
    """What the page's script draws the list from, and a sentence about songs left in place."""
    candidates, axes, margin = result.candidates, result.options.involved, result.margin
    agreement = result.agreement
    prompts, audio = candidates.table["prompt"], candidates.table["audio"]
    songs: dict[int, int] = {}
    pairs: list[dict[str, Any]] = []
    for number, at in enumerate(listed.tolist(), start=1):
        w, low = int(result.chosen[at]), int(result.rejected[at])
        pairs.append(
            {
                "number": number,
                "prompt": _shown(prompts[w].as_py()),
                "split": "test" if result.test[at] else "train",
                "margin": float(margin[at]),
                "agreement": None if agreement is None else float(agreement[at]),
                "chosen": songs.setdefault(w, len(songs)),
                "rejected": songs.setdefault(low, len(songs)),
                "axes": [[float(candidates.axes[a][i]) for i in (w, low)] for a in axes],
            }
        )
    paths = [audio[i].as_py() for i in songs]
    sources, left = place_songs([song_file(path, folder) for path in paths], output)
    splits = sorted({pair["split"] for pair in pairs}, reverse=True)
    data = {
        "axes": [visible(axis) for axis in axes],
        "splits": splits if len(splits) > 1 else [],
        "pairs": pairs,
        "songs": [
            {"label": visible(path), "source": source}
            for path, source in zip(paths, sources, strict=True)
        ],
    }
    return data, left


def _shown(prompt: str | None) -> str:
    """A prompt in one line."""
    return visible(" ".join((prompt or "").split()))
