"""The arena's reports: what `metrics.json` holds, in words, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from apex_reward.arena.disagreements import disagreement_blocks
from apex_reward.arena.findings import Tone, findings
from apex_reward.arena.records import FIGURE_COLUMNS, figure_cells, interval_text, score_summary
from apex_reward.arena.table3 import table3_blocks
from apex_reward.arena.voters import voter_blocks
from apex_reward.report.cells import cell
from apex_reward.report.charts import Entry, Line, curves, forest, heat_map, nothing
from apex_reward.report.document import Block, Grid, Heading, Picture, Words, write_document

_MAIN = ("overall", "instrumental", "vocal")
_COLOURS = {"agrees": "good", "opposes": "bad", "undetermined": "neutral", "baseline": "plain"}
_SYSTEM_PAIR = "system_pair:"
_TONES: dict[bool | None, Tone] = {True: "good", False: "warning", None: "plain"}
_REASONS = {
    "TIE": "the vote was a tie",
    "BOTH_BAD": "the vote was that both are bad",
    "missing_score": "one of the scores is missing (counted in for the others)",
    "missing_embedding": "an embedding is missing",
    "unknown_vote": "the vote is none of A, B, TIE, BOTH_BAD",
    "duplicate": "the battle's id came before",
    "unreadable": "the file is no JSON object",
    "outside_dates": "before the chosen months, or without a date",
    "unreadable_date": "the date cannot be read, or lies in the future",
    "no_audio": "a song is not there",
    "short_listening": "a song was not heard for long enough",
    "prebaked": "on one of the Arena's own prompts",
    "no_system": "a system is not named",
    "same_system": "both songs are of one system",
}


def evaluation_report(
    metrics: dict[str, Any],
    folder: Path,
    battles: Path | None = None,
    formats: Sequence[str] = (),
) -> None:
    """Write `report.html` and `report.md` of `arena evaluate` into `folder`.

    `battles` is the table or folder that the votes are from: songs found there can be played. The
    plots are written in `formats` too.
    """
    blocks: list[Block] = [Words(text, tone) for tone, text in findings(metrics)]
    blocks += [
        Heading(
            "Agreement with votes",
            "Share of decided battles whose higher-scored side won, with its 95% interval; the "
            "dashed line is chance. Green agrees, red opposes, grey is undetermined or a baseline.",
        ),
        _accuracies(_forest_entries(metrics)),
        Grid(
            ("score", "stratum", *FIGURE_COLUMNS),
            [*score_summary(metrics, _shown_strata(metrics)), *_baseline_rows(metrics)],
        ),
    ]
    blocks += _by_prompt(metrics)
    if metrics["mcnemar"]:
        blocks += _mcnemar_blocks(metrics["mcnemar"])
    blocks += _reliability_blocks(metrics)
    blocks += _system_blocks(metrics)
    blocks += disagreement_blocks(metrics, folder, battles)
    blocks += voter_blocks(metrics.get("voters", {}))
    if "classifiers" in metrics:
        blocks += table3_blocks(metrics["classifiers"])
    blocks += _data_card(metrics)
    write_document(folder, "Agreement with human votes", _subtitle(metrics), blocks, formats)


def calibration_report(metrics: dict[str, Any], folder: Path, formats: Sequence[str] = ()) -> None:
    """Write `report.html` and `report.md` of `arena calibrate` into `folder`."""
    part = metrics["calibration"]
    names = [name for name in CALIBRATED if name in part]
    rows = [
        [CALIBRATED[name], stratum, *figure_cells(part[name][stratum])]
        for name in names
        for stratum in _MAIN
        if stratum in part[name]
    ]
    blocks: list[Block] = [
        Words(part["verdict"], _TONES[part["adds_to_systems"]]),
        Heading(
            "Held-out figures",
            f"{part['folds']} folds that keep each {part['grouped_by']} together; the prior "
            "is chosen within the training folds.",
        ),
        _accuracies(_calibrated_entries(part)),
        Grid(("what", "stratum", *FIGURE_COLUMNS), rows),
    ]
    blocks += [
        Picture(
            f"Reliability, {CALIBRATED[name]} (ECE {part[name]['overall']['ece']:.3f})",
            _reliability(part[name]["overall"]["reliability"]),
            f"reliability_{name}",
        )
        for name in names
        if part[name]["overall"]["ece"] is not None
    ]
    if "learning_curve" in part:
        blocks += _learning_blocks(part["learning_curve"])
    weights = [["slope", name, value] for name, value in part["slope"].items()]
    weights += [["bias", name, value] for name, value in part["bias"].items()]
    blocks += [
        Heading("The fitted preference", f"On all battles, in log-odds; L2 {part['l2']:g}."),
        Grid(("kind", "of", "log-odds"), weights),
        *_data_card(metrics),
    ]
    write_document(folder, "Calibration on human votes", _subtitle(metrics), blocks, formats)


CALIBRATED = {
    "uncalibrated": "uncalibrated",
    "calibrated": "calibrated, scores and systems",
    "songs_only": "calibrated, without the systems",
    "system_only": "systems alone, without the score",
}


def leaderboard_report(metrics: dict[str, Any], folder: Path, formats: Sequence[str] = ()) -> None:
    """Write `report.html` and `report.md` of `arena leaderboard` into `folder`."""
    blocks = _board_blocks("Arena scores from votes", metrics["leaderboard"])
    for name, part in metrics["scores"].items():
        blocks += _board_blocks(f"Arena scores from {name}", part["leaderboard"])
        blocks.append(Words(rank_correlation_words(part)))
    blocks += _data_card(metrics)
    title = "Leaderboard of systems"
    subtitle = f"{metrics['n_used']} of {metrics['n_battles']} votes"
    write_document(folder, title, subtitle, blocks, formats)


def rank_correlation_words(part: Mapping[str, Any]) -> str:
    """How well a score's order of systems agrees with the votes', in words."""
    value, interval = part["rank_correlation"], part["rank_correlation_ci95"]
    text = "not defined" if value is None else f"{value:.3f}"
    if interval is not None:
        text += f", 95% interval {interval[0]:.3f} to {interval[1]:.3f}"
    return f"Rank correlation of the systems with the votes' order: {text} ({part['n']} battles)."


def _subtitle(metrics: dict[str, Any]) -> str:
    settings = metrics["settings"]
    return (
        f"{metrics['n_decided']} decided of {metrics['n_battles']} battles; intervals from "
        f"{settings['bootstrap']} bootstrap rounds, seed {settings['seed']}"
    )


def _shown_strata(metrics: dict[str, Any]) -> list[str]:
    names = dict.fromkeys(name for strata in metrics["scores"].values() for name in strata)
    return [name for name in names if not name.startswith(_SYSTEM_PAIR)]


def _forest_entries(metrics: dict[str, Any]) -> list[Entry]:
    shown = _shown_strata(metrics)
    entries = [
        _entry(name if stratum == "overall" else f"{name}, {stratum}", strata[stratum])
        for name, strata in metrics["scores"].items()
        for stratum in shown
        if stratum in strata
    ]
    for name, entry in metrics["baselines"].items():
        if entry["accuracy"] is not None:
            entries.append(_entry(name.replace("_", " "), entry, "baseline"))
    return entries


def _entry(label: str, entry: Mapping[str, Any], kind: str = "") -> Entry:
    value, interval = entry["accuracy"], entry["accuracy_ci95"]
    note = f"{value:.3f} {interval_text(interval) or ''}  n {entry['n']}"
    return Entry(label, value, interval, _COLOURS[kind or entry["direction"]], note)


def _accuracies(entries: list[Entry]) -> Picture:
    return Picture("Accuracy and 95% interval", forest(entries, "accuracy", 0.5), "accuracy")


def _reliability(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of A's wins against the predicted probability, the diagonal dashed."""
    if not points:
        return nothing("too few groups of battles to hold any out")
    line = Line([p["predicted"] for p in points], [p["observed"] for p in points])
    return curves({"": line}, "predicted P(A wins)", "share A won", diagonal=True)


def _baseline_rows(metrics: dict[str, Any]) -> list[list[Any]]:
    return [
        [name.replace("_", " "), "baseline", *figure_cells(entry)]
        for name, entry in metrics["baselines"].items()
    ]


def _by_prompt(metrics: dict[str, Any]) -> list[Block]:
    rows = [
        [
            name,
            interval_text(entry["accuracy_ci95_by_prompt"]),
            interval_text(entry["auc_ci95_by_prompt"]),
        ]
        for name, strata in metrics["scores"].items()
        if "accuracy_ci95_by_prompt" in (entry := strata["overall"])
    ]
    if not rows:
        return [Words("No prompts are given, so intervals are over battles only.")]
    return [
        Heading(
            "Intervals by prompt", "Whole prompts resampled: votes on one prompt hang together."
        ),
        Grid(("score", "accuracy 95%", "AUC 95%"), rows),
    ]


def _mcnemar_blocks(tests: Mapping[str, Any]) -> list[Block]:
    rows = [
        [pair, entry["n"], entry["only_first"], entry["only_second"], entry["p_value"]]
        for pair, entry in tests.items()
    ]
    return [
        Heading("Score against score", "McNemar's exact test on the battles that have both."),
        Grid(("scores", "n", "only the first right", "only the second right", "p"), rows),
    ]


def _reliability_blocks(metrics: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [
        Heading(
            "Reliability",
            "P(A wins) from a logistic on the score difference, fitted on the other folds, against "
            "the share that A won.",
        )
    ]
    for name, strata in metrics["scores"].items():
        overall = strata["overall"]
        caption = f"{name} (ECE {cell(overall['ece'])})"
        picture = _reliability(overall["reliability"])
        blocks.append(Picture(caption, picture, f"reliability_{name}"))
    return blocks


def _system_blocks(metrics: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    for name, strata in metrics["scores"].items():
        cells = {
            _pair(stratum): (entry["accuracy"], entry["n"])
            for stratum, entry in strata.items()
            if stratum.startswith(_SYSTEM_PAIR)
        }
        if cells:
            systems = sorted({system for pair in cells for system in pair})
            caption = f"Accuracy of {name} per pair of systems"
            blocks.append(Picture(caption, heat_map(systems, cells), f"systems_{name}", wide=True))
    if not blocks:
        return []
    note = "Share of battles between two systems whose higher-scored side won; small n says little."
    return [Heading("By system", note), *blocks]


def _pair(stratum: str) -> tuple[str, str]:
    first, _, second = stratum.removeprefix(_SYSTEM_PAIR).partition(" vs ")
    return first, second


def _calibrated_entries(part: Mapping[str, Any]) -> list[Entry]:
    return [
        _entry(label, part[name]["overall"], "baseline" if name == "system_only" else "")
        for name, label in CALIBRATED.items()
        if name in part
    ]


def _learning_blocks(curve: list[dict[str, Any]]) -> list[Block]:
    names = [name for name in CALIBRATED if name in curve[0]]
    rows = [
        [
            row["anchors"],
            *(f"{row[name]['accuracy']:.3f} (sd {row[name]['std']:.3f})" for name in names),
        ]
        for row in curve
    ]
    repeats = len(curve[0][names[0]]["repeats"])
    return [
        Heading(
            "How many anchor votes?",
            f"Mean accuracy on the test battles of {repeats} seeded draws.",
        ),
        Picture(
            "Accuracy over anchor votes",
            _learning(curve, names),
            "learning",
            "Bands: one standard deviation over the draws.",
        ),
        Grid(("anchors", *(name.replace("_", " ") for name in names)), rows),
    ]


def _learning(curve: list[dict[str, Any]], names: Sequence[str]) -> Figure:
    counts = [row["anchors"] for row in curve]
    lines = {}
    for name in names:
        found = [(row[name]["accuracy"], row[name]["std"]) for row in curve]
        means, low, high = zip(*((m, m - sd, m + sd) for m, sd in found), strict=True)
        lines[name.replace("_", " ")] = Line(counts, means, low, high)
    return curves(lines, "anchor votes", "accuracy (share of battles)")


def _board_blocks(title: str, rows: list[dict[str, Any]]) -> list[Block]:
    entries = [
        Entry(
            row["system"],
            row["score"],
            None if row["lower"] is None else (row["lower"], row["upper"]),
            "neutral",
            f"{row['score']:.0f}  n {row['battles']}",
        )
        for row in rows
    ]
    cells = [
        [row["system"], *(f"{row[key]:.0f}" for key in ("score", "lower", "upper")), row["battles"]]
        for row in rows
    ]
    return [
        Heading(
            title, "Bradley-Terry, 400 points per factor ten of odds, the systems' mean is 1000."
        ),
        Picture(
            "Arena score and 95% interval", forest(entries, "Arena score", 1000.0), f"board_{title}"
        ),
        Grid(("system", "score", "lower", "upper", "battles"), cells),
    ]


def _data_card(metrics: dict[str, Any]) -> list[Block]:
    rows = [
        [reason, count, _REASONS.get(reason, "")] for reason, count in metrics["dropped"].items()
    ]
    notes = [Words(note) for note in metrics["notes"]]
    return [
        Heading("Data card", f"{metrics['n_battles']} battles were read. What was left out:"),
        Grid(("reason", "battles", "meaning"), rows),
        *notes,
        *_provenance(metrics.get("provenance")),
    ]


def _provenance(made: Mapping[str, Any] | None) -> list[Block]:
    """Who made the figures: this package's version, and each score table's model and mix."""
    if made is None:
        return []
    words = f"Made by apex_reward {made['apex_reward']} from {made['battles']}."
    for table, facts in made["made_by"].items():
        told = [f"{key} {value}" for key, value in facts.items() if isinstance(value, (str, float))]
        words += f" Scores in {table}: {', '.join(told)}."
    return [Words(words)]
