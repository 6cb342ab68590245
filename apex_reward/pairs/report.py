"""`report.html`: what the pairs teach, margins, drops and balance, and the pairs to listen to.

Its plots are inside it, and the songs of a small set too; those of a larger one are copied beside
it, so that the folder opens anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apex_reward.files.tables import write_text
from apex_reward.pairs.build import PairSet
from apex_reward.pairs.candidates import Floats
from apex_reward.pairs.constraints import song_file
from apex_reward.prompt import prompt_of
from apex_reward.report import charts
from apex_reward.report.cells import Player
from apex_reward.report.document import Block, Grid, Heading, Picture, Tiles, Words, as_page
from apex_reward.report.figures import save_figure
from apex_reward.report.songs import place_songs

MOST_PAIRS = 500
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
    output, options = Path(output), result.options
    candidates, others = result.candidates, [a for a in options.involved if a != options.primary]
    blocks: list[Block] = [
        Tiles(
            {
                "pairs": len(result.chosen),
                "in train": int((~result.test).sum()),
                "in test": int(result.test.sum()),
                "prompts with a pair": len(np.unique(candidates.prompt[result.chosen])),
                "candidates": len(candidates),
                "candidates in no pair": int((~result.dropped.open).sum()),
            }
        ),
        *(Words(text, "warning") for text in (*result.warnings, result.split_note) if text),
        Heading("What a pair teaches beside the axis", "Share of pairs in which the chosen song "
                "has more of a ruler. Neutral is 0.5."),
        Grid(("ruler", "share", "95%", "pairs"),
             [(name, share, f"[{low:.3f}, {high:.3f}]", n)
              for name, share, low, high, n in result.rulers]),
        Heading("How far apart the pairs are"),
        *_differences(result, others),
        Heading("What was dropped, and why"),
        Picture("Candidates", charts.bars(result.dropped.counts(), "candidates"),
                "dropped-candidates", "in no pair, by reason"),
        Picture("Pairs", charts.bars(result.removed.counts(), "pairs"), "dropped-pairs",
                "proposed by the strategy, then removed"),
        Heading("How balanced the pairs are"),
        *_balance(result),
        *_listed(result, output, folder),
    ]  # fmt: skip
    text = f"Strategy {options.strategy_name} on {options.primary}"
    subtitle = text + (f", with {', '.join(others)}." if others else ".")
    write_text(output / "report.html", as_page("Preference pairs", subtitle, blocks))
    for block in blocks:
        if isinstance(block, Picture):
            save_figure(block.figure, output / "figures" / block.name, formats)


def _differences(result: PairSet, others: Sequence[str]) -> list[Picture]:
    primary, axes = result.options.primary, result.candidates.numbers
    figure = charts.histogram(result.margin, f"margin on {primary} ({LEAD})", "pairs")
    pictures = [Picture("Margin", figure, "margin", f"{LEAD}, {primary}")]
    if result.agreement is not None:
        figure = charts.histogram(result.agreement, "members that agree (share)", "pairs")
        note = f"share of an ensemble's members with the chosen ahead on {primary}"
        pictures.append(Picture("Agreement", figure, "agreement", note))
    for number, axis in enumerate(others, start=1):
        lead = axes[axis][result.chosen] - axes[axis][result.rejected]
        lost = f"; the rejected is ahead in {(lead < 0).mean():.0%}" if len(lead) else ""
        figure = charts.histogram(lead, f"{axis} ({LEAD})", "pairs")
        pictures.append(Picture(axis, figure, f"axis-{number}", f"{LEAD}{lost}"))
    return pictures


def _balance(result: PairSet) -> list[Picture]:
    candidates, w, low = result.candidates, result.chosen, result.rejected
    pictures = []
    for title, values, unit in (
        ("Duration", candidates.numbers["duration"], "s"),
        ("Loudness", candidates.rulers()["loudness"], "LU"),
    ):
        lead = values[w] - values[low]
        figure = charts.histogram(lead, f"{LEAD} in {unit}", "pairs")
        pictures.append(Picture(title, figure, title.lower(), _mean_note(lead, unit)))
    groups = candidates.column("group")
    if any(groups):
        chosen = Counter(str(groups[i]) for i in w.tolist())
        rejected = Counter(str(groups[i]) for i in low.tolist())
        names = chosen.keys() | rejected.keys()
        counts = {name: (float(chosen[name]), float(rejected[name])) for name in names}
        figure = charts.bars(counts, "times in a pair", ("chosen", "rejected"))
        note = f"times chosen / rejected, the largest of {len(names)}"
        pictures.append(Picture("Group", figure, "group", note))
    return pictures


def _mean_note(difference: Floats, unit: str) -> str:
    known = difference[np.isfinite(difference)]
    if not len(known):
        return "not known for these candidates"
    return f"{LEAD} in {unit}, mean {known.mean():+.3g}, {len(known)} pairs"


def _listed(result: PairSet, output: Path, folder: Path | None) -> list[Block]:
    """The table of pairs, those with the smallest margins first, with players."""
    candidates, agreement = result.candidates, result.agreement
    shown = np.argsort(result.margin, kind="stable")[:MOST_PAIRS]
    sides = {"chosen": result.chosen[shown], "rejected": result.rejected[shown]}
    songs = list(dict.fromkeys(np.stack([*sides.values()], axis=1).ravel().tolist()))
    paths = {i: candidates.table["audio"][i].as_py() for i in songs}
    sources, left = place_songs([song_file(paths[i], folder) for i in songs], output)
    source = dict(zip(songs, sources, strict=True))
    axes = result.options.involved
    columns = [
        "pair",
        "prompt",
        *sides,
        "margin",
        *(["agreement"] if agreement is not None else []),
    ]
    columns += ["split", *(f"{axis}: {side}" for axis in axes for side in sides)]
    rows, prompts = [], result.prompts
    for number, at in enumerate(shown.tolist(), start=1):
        pair = {"chosen": int(result.chosen[at]), "rejected": int(result.rejected[at])}
        prompt = " ".join(prompt_of(prompts[at]).split())
        players = [Player(paths[i], source[i], f"{side} song of pair {number}: {paths[i]}")
                   for side, i in pair.items()]  # fmt: skip
        rows.append([
            number, prompt, *players, float(result.margin[at]),
            *([] if agreement is None else [float(agreement[at])]),
            "test" if result.test[at] else "train",
            *(float(candidates.numbers[axis][i]) for axis in axes for i in pair.values()),
        ])  # fmt: skip
    note = f"{len(shown):,} of {len(result.chosen):,} pairs, smallest margins first. {left}"
    if not rows:
        return [Heading("Listen"), Words("No pair was made.")]
    return [Heading("Listen", note.strip()), Grid(columns, rows, "Pairs")]
