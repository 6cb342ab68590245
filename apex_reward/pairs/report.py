"""What a run says of its pairs: `summary.json`, `report.html` and the card of a data set.

The plots of the page are inside it, and the songs of a small set too; those of a larger one are
copied beside it, so that the folder opens anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from apex_reward.files.tables import write_text
from apex_reward.model.licences import stated
from apex_reward.pairs.build import PairSet, pairs_table
from apex_reward.pairs.constraints import song_file
from apex_reward.pairs.forms import SIDES
from apex_reward.pairs.options import PairOptions
from apex_reward.prompt import prompt_of
from apex_reward.report import charts
from apex_reward.report.cells import Player
from apex_reward.report.document import (
    Block,
    Grid,
    Heading,
    Picture,
    Words,
    as_page,
    record_grid,
    render,
)
from apex_reward.report.markdown import DEMONSTRATION, card, markdown_table
from apex_reward.report.songs import place_songs
from apex_reward.version import package_version

MOST_PAIRS = 500
"""Pairs in the list, those with the smallest margins; the plots show all."""
LEAD = "chosen less rejected"
TEACHES = "What it teaches beside the axis"
TRAINERS = {"trl": "DPOTrainer", "kto": "KTOTrainer"}


def summary(result: PairSet) -> dict[str, Any]:
    """Counts of a run, JSON-ready: what came in, what was dropped why, what came out."""
    candidates, options = result.candidates, result.options
    prompts = candidates.prompt[candidates.table["prompt_id"].is_valid().to_numpy()]
    return {
        "strategy": options.strategy_name,
        "axis": options.primary,
        "axes": list(options.involved),
        "seed": options.seed,
        "n_candidates": len(candidates),
        "n_prompts": len(np.unique(prompts)),
        "n_pairs": len(result.chosen),
        "n_train": int((~result.test).sum()),
        "n_test": int(result.test.sum()),
        "n_prompts_paired": len(np.unique(candidates.prompt[result.chosen])),
        "n_candidates_paired": len(np.union1d(result.chosen, result.rejected)),
        "n_candidates_chosen_and_rejected": len(np.intersect1d(result.chosen, result.rejected)),
        "n_candidates_dropped": int((~result.dropped.open).sum()),
        "dropped_candidates": result.dropped.counts(),
        "dropped_pairs": result.removed.counts(),
        "rulers": {name: {"share": share, "ci95": [low, high], "n": n}
                   for name, share, low, high, n in result.rulers},
        "warnings": [text for text in (*result.warnings, result.split_note) if text],
    }  # fmt: skip


def _rulers(counts: Mapping[str, Any]) -> Grid:
    columns = {"share": "share", "95%": "ci95", "pairs": "n"}
    return record_grid("ruler", counts["rulers"].items(), columns)


def write_report(result: PairSet, output: str | Path, folder: Path | None = None) -> None:
    """Write `report.html` into the folder `output`, and `report_files/` where songs are large.

    Args:
        result: what `build` returned.
        output: the folder of the report.
        folder: where relative audio paths are tried next to the working directory.
    """
    output, options, counts = Path(output), result.options, summary(result)
    others = [axis for axis in options.involved if axis != options.primary]
    numbers = {"pairs": "n_pairs", "in train": "n_train", "in test": "n_test",
               "prompts with a pair": "n_prompts_paired", "candidates": "n_candidates",
               "candidates in no pair": "n_candidates_dropped"}  # fmt: skip
    blocks: list[Block] = [
        Grid([*numbers], [[counts[name] for name in numbers.values()]], "Counts"),
        *(Words(text, "warning") for text in counts["warnings"]),
        Heading(TEACHES, "Share of pairs in which the chosen song has more of a ruler. Neutral is "
                "0.5."),
        _rulers(counts),
        Heading("What was dropped, and why"),
        Picture("Candidates", charts.bars(counts["dropped_candidates"], "candidates"),
                "dropped-candidates", "in no pair, by reason"),
        Picture("Pairs", charts.bars(counts["dropped_pairs"], "pairs"), "dropped-pairs",
                "proposed by the strategy, then removed"),
        Heading("How far apart and how balanced the pairs are"),
        *_differences(result, others),
        *_listed(result, output, folder),
    ]  # fmt: skip
    text = f"Strategy {options.strategy_name} on {options.primary}"
    subtitle = text + (f", with {', '.join(others)}." if others else ".")
    write_text(output / "report.html", as_page("Preference pairs", subtitle, blocks))


def _differences(result: PairSet, others: Sequence[str]) -> list[Picture]:
    """Histograms of what tells the two songs of a pair apart, and how often groups are in pairs."""
    numbers, primary = result.candidates.numbers, result.options.primary
    leads = [("Margin", "margin", numbers[primary], f"margin on {primary} ({LEAD})")]
    leads += [(axis, f"axis-{number}", numbers[axis], f"{axis} ({LEAD})")
              for number, axis in enumerate(others, start=1)]  # fmt: skip
    leads.append(("Duration", "duration", numbers["duration"], f"{LEAD} in s"))
    leads.append(("Loudness", "loudness", result.candidates.rulers()["loudness"], f"{LEAD} in LU"))
    pictures = []
    for title, name, values, text in leads:
        lead = values[result.chosen] - values[result.rejected]
        pictures.append(Picture(title, charts.histogram(lead, text, "pairs"), name))
    if result.agreement is not None:
        figure = charts.histogram(result.agreement, "members that agree (share)", "pairs")
        pictures.append(Picture("Agreement", figure, "agreement"))
    if "group" in result.candidates.table.column_names:
        groups = result.candidates.column("group")
        sides = [Counter(str(groups[i]) for i in side.tolist())
                 for side in (result.chosen, result.rejected)]  # fmt: skip
        counts = {name: [float(side[name]) for side in sides] for name in sides[0] | sides[1]}
        figure = charts.bars(counts, "times in a pair", ("chosen", "rejected"))
        pictures.append(Picture("Group", figure, "group"))
    return pictures


def _listed(result: PairSet, output: Path, folder: Path | None) -> list[Block]:
    """The table of pairs, those with the smallest margins first, with players."""
    if not len(result.chosen):
        return [Heading("Listen"), Words("No pair was made.")]
    shown = np.argsort(result.margin, kind="stable")[:MOST_PAIRS]
    pairs = pairs_table(result).take(shown).to_pylist()
    paths = dict.fromkeys(pair[side] for pair in pairs for side in SIDES)
    sources, left = place_songs([song_file(path, folder) for path in paths], output)
    source = dict(zip(paths, sources, strict=True))
    columns = {"margin": "margin", "agreement": "agreement", "split": "split"}
    columns |= {f"{side}_{axis}": f"{axis}: {side}"
                for axis in result.options.involved for side in SIDES}  # fmt: skip
    columns = {name: title for name, title in columns.items() if name in pairs[0]}
    rows = []
    for number, (at, pair) in enumerate(zip(shown.tolist(), pairs, strict=True), start=1):
        prompt = " ".join(prompt_of(result.prompts[at]).split())
        said = f"song of pair {number}"
        players = [Player(pair[s], source[pair[s]], f"{s} {said}: {pair[s]}") for s in SIDES]
        rows.append([number, prompt, *players, *(pair[name] for name in columns)])
    note = f"{len(shown):,} of {len(result.chosen):,} pairs, smallest margins first. {left}"
    titles = ["pair", "prompt", *SIDES, *columns.values()]
    return [Heading("Listen", note.strip()), Grid(titles, rows, "Pairs")]


def pairs_card(
    options: PairOptions,
    counts: Mapping[str, Any],
    form: str,
    configs: Mapping[str, str],
    made_by: Mapping[str, Any] | None,
) -> str:
    """The README.md of a data set's folder.

    Args:
        counts: `summary(result)`.
        form: `trl` or `kto`.
        configs: the digest of the files of each config. It stands in the card, so that the cache
            of `datasets` tells sets in folders of one name apart.
        made_by: `provenance` of the reward that scored the candidates; None where it is not known.
    """
    splits = [name for name in ("train", "test") if name == "train" or counts[f"n_{name}"]]
    homes = {"default": "data", "audio": "audio"}
    head = {
        "license": "unknown",
        "task_categories": ["text-to-audio"],
        "tags": ["music", "preference", "reward-model", "trl", "apex-reward"],
        "configs": [
            {
                "config_name": name,
                "description": f"content {digest}",
                "data_files": [{"split": split, "path": f"{homes[name]}/{split}-*"}
                               for split in splits],
            }
            for name, digest in configs.items()
        ],
    }  # fmt: skip
    asked = {"strategy": options.strategy_name, "axis": options.primary, "seed": options.seed}
    for field in fields(options):
        value = getattr(options, field.name)
        if value not in (None, (), {}, False, field.default):
            asked.setdefault(field.name, value)
    drops = counts["dropped_candidates"] | counts["dropped_pairs"]
    if form == "kto" and counts["n_candidates_chosen_and_rejected"]:
        drops["both chosen and rejected"] = counts["n_candidates_chosen_and_rejected"]
    made_by = made_by or {}
    models = [(name, about["source"], about["hash"], stated(about.get("licences", ())))
              for name, about in made_by.get("models", {}).items()]  # fmt: skip
    settings = {name: value for name, value in made_by.get("reward", {}).items()
                if value not in (None, [])}  # fmt: skip
    text = render(
        "pairs/card.md", n=counts, form=form, trainer=TRAINERS[form], table=markdown_table,
        songs_apart="audio" in configs, version=package_version(), drops=[*drops.items()],
        options=[(name, str(value)) for name, value in asked.items()], teaches=TEACHES,
        rulers=_rulers(counts), models=models,
        settings=[(name, str(value)) for name, value in settings.items()],
        demonstration=DEMONSTRATION if made_by.get("demonstration") else "",
    )  # fmt: skip
    return card(head, "Preference pairs of songs", [text.strip()])
