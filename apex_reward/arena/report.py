"""The arena's reports: what `metrics.json` holds, in words, tables and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from apex_reward.arena.data_card import data_card
from apex_reward.arena.disagreements import disagreement_blocks
from apex_reward.arena.findings import Tone, findings
from apex_reward.arena.records import FIGURE_COLUMNS, figure_cells, interval_text, score_summary
from apex_reward.arena.results import (
    AgreementResult,
    Bin,
    BoardRow,
    CalibrationResult,
    CurveRow,
    Figures,
    HeldOut,
    Leaderboards,
    McNemar,
    ScoreBoard,
    defined,
)
from apex_reward.arena.table3 import table3_blocks
from apex_reward.arena.voters import voter_blocks
from apex_reward.report.cells import cell
from apex_reward.report.charts import Entry, Line, curves, forest, heat_map, nothing
from apex_reward.report.document import Block, Grid, Heading, Picture, Words, write_document

_MAIN = ("overall", "instrumental", "vocal")
_COLOURS = {"agrees": "good", "opposes": "bad", "undetermined": "neutral", "baseline": "plain"}
_SYSTEM_PAIR = "system_pair:"
_TONES: dict[bool | None, Tone] = {True: "good", False: "warning", None: "plain"}


def evaluation_report(
    metrics: AgreementResult,
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
    if metrics.mcnemar:
        blocks += _mcnemar_blocks(metrics.mcnemar)
    blocks += _reliability_blocks(metrics)
    blocks += _system_blocks(metrics)
    blocks += disagreement_blocks(metrics, folder, battles)
    blocks += voter_blocks(metrics.voters)
    if metrics.classifiers is not None:
        blocks += table3_blocks(metrics.classifiers)
    blocks += data_card(metrics)
    write_document(folder, "Agreement with human votes", _subtitle(metrics), blocks, formats)


def calibration_report(
    metrics: CalibrationResult, folder: Path, formats: Sequence[str] = ()
) -> None:
    """Write `report.html` and `report.md` of `arena calibrate` into `folder`."""
    part = metrics.calibration
    compared = part.compared()
    rows = [
        [CALIBRATED[name], stratum, *figure_cells(entry)]
        for name, strata in compared.items()
        for stratum, entry in strata.items()
        if stratum in _MAIN
    ]
    blocks: list[Block] = [
        Words(part.verdict, _TONES[part.adds_to_systems]),
        Heading(
            "Held-out figures",
            f"{part.folds} folds that keep each {part.grouped_by} together; the prior "
            "is chosen within the training folds.",
        ),
        _accuracies(_calibrated_entries(part)),
        Grid(("what", "stratum", *FIGURE_COLUMNS), rows),
    ]
    blocks += [
        Picture(
            f"Reliability, {CALIBRATED[name]} (ECE {strata.overall.ece:.3f})",
            _reliability(strata.overall.reliability),
            f"reliability_{name}",
        )
        for name, strata in compared.items()
        if not math.isnan(strata.overall.ece)
    ]
    if part.learning_curve is not None:
        blocks += _learning_blocks(part.learning_curve)
    weights = [["slope", name, value] for name, value in part.slope.items()]
    weights += [["bias", name, value] for name, value in part.bias.items()]
    blocks += [
        Heading("The fitted preference", f"On all battles, in log-odds; L2 {part.l2:g}."),
        Grid(("kind", "of", "log-odds"), weights),
        *data_card(metrics),
    ]
    write_document(folder, "Calibration on human votes", _subtitle(metrics), blocks, formats)


CALIBRATED = {
    "uncalibrated": "uncalibrated",
    "calibrated": "calibrated, scores and systems",
    "songs_only": "calibrated, without the systems",
    "system_only": "systems alone, without the score",
}


def leaderboard_report(metrics: Leaderboards, folder: Path, formats: Sequence[str] = ()) -> None:
    """Write `report.html` and `report.md` of `arena leaderboard` into `folder`."""
    blocks = _board_blocks("Arena scores from votes", metrics.leaderboard)
    for name, part in metrics.scores.items():
        blocks += _board_blocks(f"Arena scores from {name}", part.leaderboard)
        blocks.append(Words(rank_correlation_words(part)))
    blocks += data_card(metrics)
    title = "Leaderboard of systems"
    subtitle = f"{metrics.n_used} of {metrics.n_battles} votes"
    write_document(folder, title, subtitle, blocks, formats)


def rank_correlation_words(part: ScoreBoard) -> str:
    """How well a score's order of systems agrees with the votes', in words."""
    value, interval = part.rank_correlation, defined(part.rank_correlation_ci95)
    text = "not defined" if math.isnan(value) else f"{value:.3f}"
    if interval is not None:
        text += f", 95% interval {interval[0]:.3f} to {interval[1]:.3f}"
    return f"Rank correlation of the systems with the votes' order: {text} ({part.n} battles)."


def _subtitle(metrics: AgreementResult | CalibrationResult) -> str:
    return (
        f"{metrics.n_decided} decided of {metrics.n_battles} battles; intervals from "
        f"{metrics.settings.bootstrap} bootstrap rounds, seed {metrics.settings.seed}"
    )


def _shown_strata(metrics: AgreementResult) -> list[str]:
    names = dict.fromkeys(name for strata in metrics.scores.values() for name, _ in strata.items())
    return [name for name in names if not name.startswith(_SYSTEM_PAIR)]


def _forest_entries(metrics: AgreementResult) -> list[Entry]:
    entries = []
    for name, strata in metrics.scores.items():
        found = dict(strata.items())
        entries += [
            _entry(name if stratum == "overall" else f"{name}, {stratum}", found[stratum])
            for stratum in _shown_strata(metrics)
            if stratum in found
        ]
    for label, entry in _baselines(metrics):
        if not math.isnan(entry.accuracy):
            entries.append(_entry(label, entry, "baseline"))
    return entries


def _baselines(metrics: AgreementResult) -> list[tuple[str, Figures]]:
    return [
        ("position a", metrics.baselines.position_a),
        ("system only", metrics.baselines.system_only),
    ]


def _entry(label: str, entry: Figures, kind: str = "") -> Entry:
    note = f"{entry.accuracy:.3f} {interval_text(entry.accuracy_ci95) or ''}  n {entry.n}"
    colour = _COLOURS[kind or entry.direction or "undetermined"]
    return Entry(label, entry.accuracy, defined(entry.accuracy_ci95), colour, note)


def _accuracies(entries: list[Entry]) -> Picture:
    return Picture("Accuracy and 95% interval", forest(entries, "accuracy", 0.5), "accuracy")


def _reliability(points: Sequence[Bin]) -> Figure:
    """Share of A's wins against the predicted probability, the diagonal dashed."""
    if not points:
        return nothing("too few groups of battles to hold any out")
    line = Line([point.predicted for point in points], [point.observed for point in points])
    return curves({"": line}, "predicted P(A wins)", "share A won", diagonal=True)


def _baseline_rows(metrics: AgreementResult) -> list[list[Any]]:
    return [[label, "baseline", *figure_cells(entry)] for label, entry in _baselines(metrics)]


def _by_prompt(metrics: AgreementResult) -> list[Block]:
    rows = [
        [name, interval_text(overall.accuracy_ci95_by_prompt),
         interval_text(overall.auc_ci95_by_prompt)]
        for name, strata in metrics.scores.items()
        if (overall := strata.overall).accuracy_ci95_by_prompt is not None
    ]  # fmt: skip
    if not rows:
        return [Words("No prompts are given, so intervals are over battles only.")]
    return [
        Heading(
            "Intervals by prompt", "Whole prompts resampled: votes on one prompt hang together."
        ),
        Grid(("score", "accuracy 95%", "AUC 95%"), rows),
    ]


def _mcnemar_blocks(tests: Mapping[str, McNemar]) -> list[Block]:
    rows = [
        [pair, test.n, test.only_first, test.only_second, test.p_value]
        for pair, test in tests.items()
    ]
    return [
        Heading("Score against score", "McNemar's exact test on the battles that have both."),
        Grid(("scores", "n", "only the first right", "only the second right", "p"), rows),
    ]


def _reliability_blocks(metrics: AgreementResult) -> list[Block]:
    blocks: list[Block] = [
        Heading(
            "Reliability",
            "P(A wins) from a logistic on the score difference, fitted on the other folds, against "
            "the share that A won.",
        )
    ]
    for name, strata in metrics.scores.items():
        caption = f"{name} (ECE {cell(strata.overall.ece)})"
        picture = _reliability(strata.overall.reliability)
        blocks.append(Picture(caption, picture, f"reliability_{name}"))
    return blocks


def _system_blocks(metrics: AgreementResult) -> list[Block]:
    blocks: list[Block] = []
    for name, strata in metrics.scores.items():
        cells = {
            _pair(stratum): (entry.accuracy, entry.n)
            for stratum, entry in strata.items()
            if stratum.startswith(_SYSTEM_PAIR)
        }
        if cells:
            systems = sorted({system for pair in cells for system in pair})
            caption = f"Accuracy of {name} per pair of systems"
            figure, wide = heat_map(systems, cells), len(systems) > 4
            blocks.append(Picture(caption, figure, f"systems_{name}", wide=wide))
    if not blocks:
        return []
    note = "Share of battles between two systems whose higher-scored side won; small n says little."
    return [Heading("By system", note), *blocks]


def _pair(stratum: str) -> tuple[str, str]:
    first, _, second = stratum.removeprefix(_SYSTEM_PAIR).partition(" vs ")
    return first, second


def _calibrated_entries(part: HeldOut) -> list[Entry]:
    return [
        _entry(CALIBRATED[name], strata.overall, "baseline" if name == "system_only" else "")
        for name, strata in part.compared().items()
    ]


def _learning_blocks(curve: Sequence[CurveRow]) -> list[Block]:
    rows = [
        [row.anchors, *(f"{p.accuracy:.3f} (sd {p.std:.3f})" for p in row.points().values())]
        for row in curve
    ]
    names = [name.replace("_", " ") for name in curve[0].points()]
    return [
        Heading(
            "How many anchor votes?",
            f"Mean accuracy on the test battles of {len(curve[0].calibrated.repeats)} seeded "
            "draws.",
        ),
        Picture(
            "Accuracy over anchor votes",
            _learning(curve),
            "learning",
            "Bands: one standard deviation over the draws.",
        ),
        Grid(("anchors", *names), rows),
    ]


def _learning(curve: Sequence[CurveRow]) -> Figure:
    counts = [row.anchors for row in curve]
    lines = {}
    for name in curve[0].points():
        found = [row.points()[name] for row in curve]
        lines[name.replace("_", " ")] = Line(
            counts,
            [point.accuracy for point in found],
            [point.accuracy - point.std for point in found],
            [point.accuracy + point.std for point in found],
        )
    return curves(lines, "anchor votes", "accuracy (share of battles)")


def _board_blocks(title: str, rows: Sequence[BoardRow]) -> list[Block]:
    entries = [
        Entry(row.system, row.score, defined((row.lower, row.upper)), "neutral",
              f"{row.score:.0f}  n {row.battles}")
        for row in rows
    ]  # fmt: skip
    cells = [
        [row.system, *(f"{value:.0f}" for value in (row.score, row.lower, row.upper)), row.battles]
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
