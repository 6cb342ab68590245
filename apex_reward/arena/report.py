"""The arena's reports: the content of `metrics.json` in words, tables and plots.

`*_summary` are the blocks that a terminal shows; the pages begin with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.arena.calibration import COMPARED
from apex_reward.arena.figures import CLAIMS
from apex_reward.arena.findings import by_entries, findings
from apex_reward.arena.protocol import table3_caption, table3_grid
from apex_reward.arena.voters import voter_words
from apex_reward.report.cells import Player
from apex_reward.report.charts import Entry, Line, curves, forest, heat_map, nothing
from apex_reward.report.document import Block, Grid, Heading, Picture, Words, write_document
from apex_reward.report.markdown import markdown_table
from apex_reward.report.songs import place_songs

Metrics = Mapping[str, Any]
FIGURE_COLUMNS = ("n", "accuracy", "95%", "AUC", "AUC 95%", "direction")
TEST_COLUMNS = ("compared", "n", "only the first right", "only the second right", "p")
CALIBRATED = {
    "uncalibrated": "uncalibrated",
    "calibrated": "calibrated, scores and systems",
    "songs_only": "calibrated, without the systems",
    "system_only": "systems alone, without the score",
}
REASONS = {
    "TIE": "the vote was a tie",
    "BOTH_BAD": "the vote was that both are bad",
    "missing_score": "one of the scores is missing (the battle counts for the others)",
    "missing_embedding": "an embedding is missing",
    "unknown_vote": "the vote is none of A, B, TIE, BOTH_BAD",
    "duplicate": "another battle has the same id",
    "unreadable": "a score is not a number (the battle counts for the others), or a file not JSON",
    "outside_dates": "before the chosen months, or without a date",
    "unreadable_date": "the date cannot be read, or lies in the future",
    "no_audio": "a song does not exist",
    "short_listening": "the voter listened to a song for less than the asked seconds",
    "prebaked": "on one of the Arena's own prompts",
    "no_system": "a system is not named",
    "same_system": "both songs are of one system",
}
_COLOURS = {"agrees": "good", "opposes": "bad", "undetermined": "neutral"}
_TONES: dict[bool | None, str] = {True: "good", False: "warning", None: "plain"}
_SYSTEM_PAIR = "system_pair:"


def evaluation_summary(metrics: Metrics) -> list[Block]:
    """Figures of the main strata, what was left out, and the findings in words."""
    entries = [
        (name if stratum == "overall" else f"{name}, {stratum}", strata[stratum])
        for name, strata in metrics["scores"].items()
        for stratum in CLAIMS
        if stratum in strata
    ]
    entries += [(name.replace("_", " "), part) for name, part in metrics["baselines"].items()]
    title = f"{metrics['n_decided']} decided of {metrics['n_battles']} battles"
    blocks: list[Block] = [Heading(title), _figure_grid("score", entries)]
    if left_out := [(name, count) for name, count in metrics["dropped"].items() if count]:
        blocks += [Heading("Left out"), Grid(("reason", "battles"), left_out)]
    if "classifiers" in metrics:
        columns, rows = table3_grid(metrics["classifiers"])
        # The F1 columns are in table3.md: five columns are what a terminal holds.
        blocks += [Heading("Table 3, published / honest"), Grid(columns[:5], [r[:5] for r in rows])]
        blocks.append(Words(metrics["classifiers"]["rules_line"]))
    words = [*voter_words(metrics.get("voters", {})), *metrics["notes"]]
    return [*blocks, *findings(metrics), *map(Words, words)]


def evaluation_report(
    metrics: Metrics, folder: Path, battles: Path | None = None, formats: Sequence[str] = ()
) -> None:
    """Write `report.html` and `report.md` of `arena evaluate` into `folder`.

    Args:
        battles: the table or folder of the votes: the page plays songs that are found there.
        formats: file formats in which the plots are written too.
    """
    blocks: list[Block] = [
        *findings(metrics),
        Heading(
            "Agreement with votes",
            "Share of decided battles whose higher-scored side won, with its 95% interval; the "
            "dashed line is chance. Green agrees, red opposes, grey is undetermined or a baseline.",
        ),
        _accuracies(_agreement_entries(metrics)),
        _figure_grid("score", _agreement_entries(metrics)),
        *_by_prompt(metrics),
        *_tests(metrics),
        *_ruler_blocks(metrics),
        *_group_blocks(metrics),
        *_reliability_blocks(
            {name: strata["overall"] for name, strata in metrics["scores"].items()}
        ),
        *_system_blocks(metrics),
        *_disagreement_blocks(metrics, folder, battles),
        *_voter_blocks(metrics.get("voters", {})),
    ]
    if table := metrics.get("classifiers"):
        blocks += [
            Heading("The paper's protocol (Table 3)", table3_caption(table)),
            Grid(*table3_grid(table), "Table 3"),
            Words(table["rules_line"], "warning"),
            *map(Words, table["notes"]),
        ]
    blocks += data_card(metrics)
    write_document(folder, "Agreement with human votes", _subtitle(metrics), blocks, formats)


def calibration_summary(metrics: Metrics) -> list[Block]:
    """Held-out figures, the fitted slopes and biases, the learning curve and the verdict."""
    part = metrics["calibration"]
    blocks: list[Block] = [
        Heading(f"Held out, folds by {part['grouped_by']}"),
        _figure_grid("what", _compared(part)),
        Heading("The fitted preference", f"On all battles, in log-odds; L2 {part['l2']:g}."),
        Grid(
            ("kind", "of", "log-odds"),
            [[kind, *item] for kind in ("slope", "bias") for item in part[kind].items()],
        ),
    ]
    if curve := part.get("learning_curve"):
        names = [name for name in COMPARED if name in curve[0]]
        rows = [
            [row["anchors"], *(f"{row[n]['accuracy']:.3f} (sd {row[n]['std']:.3f})" for n in names)]
            for row in curve
        ]
        note = f"Mean accuracy on the test battles of {len(curve[0][names[0]]['repeats'])} draws."
        blocks += [Heading("How many anchor votes?", note)]
        blocks.append(Grid(("anchors", *(name.replace("_", " ") for name in names)), rows))
    return [*blocks, Words(part["verdict"], _TONES[part["adds_to_systems"]])]


def calibration_report(metrics: Metrics, folder: Path, formats: Sequence[str] = ()) -> None:
    """Write `report.html` and `report.md` of `arena calibrate` into `folder`."""
    part = metrics["calibration"]
    blocks = [*calibration_summary(metrics), _accuracies(_compared(part))]
    if curve := part.get("learning_curve"):
        note = "Bands: one standard deviation over the draws."
        blocks.append(Picture("Accuracy over anchor votes", _learning(curve), "learning", note))
    overall = {CALIBRATED[name]: part[name]["overall"] for name in COMPARED if name in part}
    blocks += [*_reliability_blocks(overall), *data_card(metrics)]
    write_document(folder, "Calibration on human votes", _subtitle(metrics), blocks, formats)


def calibration_parts(metrics: Metrics) -> list[str]:
    """What the card of a model with a calibrated preference states: its votes and its figures."""
    part = metrics["calibration"]
    slopes = markdown_table(("head", "log-odds per point"), list(part["slope"].items()))
    overall = [(CALIBRATED[name], part[name]["overall"]) for name in COMPARED if name in part]
    grid = _figure_grid("what", overall)
    return [
        f"## Data\n\nIts mix `preference` was fitted to {metrics['n_decided']:,} decided votes of "
        f"{metrics['n_battles']:,} battles between songs.\n\n{slopes}",
        f"## Measured\n\nOn held-out votes, in {part['folds']} folds that keep each "
        f"{part['grouped_by']} together. {part['verdict']}\n\n"
        + markdown_table(grid.columns, grid.rows),
    ]


def leaderboard_summary(metrics: Metrics) -> list[Block]:
    """The boards, and how well their orders agree."""
    blocks = _board_blocks("votes", metrics["leaderboard"])
    for name, part in metrics["scores"].items():
        blocks += [*_board_blocks(name, part["leaderboard"]), Words(_rank_words(part))]
    return blocks


def leaderboard_report(metrics: Metrics, folder: Path, formats: Sequence[str] = ()) -> None:
    """Write `report.html` and `report.md` of `arena leaderboard` into `folder`."""
    boards = {"votes": metrics["leaderboard"]}
    boards |= {name: part["leaderboard"] for name, part in metrics["scores"].items()}
    blocks = leaderboard_summary(metrics)
    for name, rows in boards.items():
        for number in sorted({row["component"] for row in rows}):
            entries = [
                Entry(row["system"], row["score"], _drawn(row, rows), "neutral",
                      f"{row['score']:.0f}  n {row['battles']}")
                for row in rows if row["component"] == number
            ]  # fmt: skip
            caption = f"Arena scores from {name}" + (f", component {number}" * (number > 1))
            blocks.append(
                Picture(caption, forest(entries, "Arena score", 1000.0), f"board_{name}_{number}")
            )
    blocks += data_card(metrics)
    subtitle = f"{metrics['n_used']} of {metrics['n_battles']} votes"
    write_document(folder, "Leaderboard of systems", subtitle, blocks, formats)


def data_card(metrics: Metrics) -> list[Block]:
    """Battles read, what was left out and why, notes, and what made the scores."""
    rows = [[name, count, REASONS.get(name, "")] for name, count in metrics["dropped"].items()]
    blocks: list[Block] = [
        Heading("Data card", f"{metrics['n_battles']} battles were read. What was left out:"),
        Grid(("reason", "battles", "meaning"), rows),
        *map(Words, metrics["notes"]),
    ]
    if made := metrics.get("provenance"):
        words = f"Made by apex_reward {made['apex_reward']} from {made['battles']}."
        for table, facts in made["made_by"].items():
            told = [f"{key} {fact}" for key, fact in facts.items() if isinstance(fact, str | float)]
            words += f" Scores in {table}: {', '.join(told)}."
        blocks.append(Words(words))
    return blocks


def _subtitle(metrics: Metrics) -> str:
    settings = metrics["settings"]
    return (
        f"{metrics['n_decided']} decided of {metrics['n_battles']} battles; "
        f"{settings['bootstrap']} bootstrap rounds, seed {settings['seed']}"
    )


def interval_text(interval: Sequence[float] | None) -> str | None:
    """`[0.512, 0.561]`, or None where there is no interval."""
    return None if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _figure_grid(name: str, entries: Iterable[tuple[str, Metrics]]) -> Grid:
    """A row per entry: n, accuracy, interval, AUC, interval, direction."""
    rows = [
        [
            label,
            entry["n"],
            entry["accuracy"],
            interval_text(entry["accuracy_ci95"]),
            entry.get("auc"),
            interval_text(entry.get("auc_ci95")),
            entry.get("direction"),
        ]
        for label, entry in entries
    ]
    return Grid((name, *FIGURE_COLUMNS), rows)


def _agreement_entries(metrics: Metrics) -> list[tuple[str, Metrics]]:
    entries = [
        (name if stratum == "overall" else f"{name}, {stratum}", entry)
        for name, strata in metrics["scores"].items()
        for stratum, entry in strata.items()
        if stratum in CLAIMS or stratum.startswith("month:")
    ]
    return entries + [(name.replace("_", " "), part) for name, part in metrics["baselines"].items()]


def _compared(part: Metrics) -> list[tuple[str, Metrics]]:
    return [
        (CALIBRATED[name] if stratum == "overall" else f"{CALIBRATED[name]}, {stratum}", entry)
        for name in COMPARED
        if name in part
        for stratum, entry in part[name].items()
        if stratum in CLAIMS
    ]


def _accuracies(entries: Iterable[tuple[str, Metrics]]) -> Picture:
    rows = [
        Entry(
            label,
            entry["accuracy"],
            entry["accuracy_ci95"],
            _COLOURS.get(entry.get("direction", ""), "plain"),
            f"{entry['accuracy']:.3f} {interval_text(entry['accuracy_ci95']) or ''}  "
            f"n {entry['n']}",
        )
        for label, entry in entries
        if entry["accuracy"] is not None
    ]
    return Picture("Accuracy and 95% interval", forest(rows, "accuracy", 0.5), "accuracy")


def _by_prompt(metrics: Metrics) -> list[Block]:
    rows = [
        [name, *(interval_text(strata["overall"][f"{kind}_ci95_by_prompt"])
                 for kind in ("accuracy", "auc"))]
        for name, strata in metrics["scores"].items()
        if "auc_ci95_by_prompt" in strata["overall"]
    ]  # fmt: skip
    if not rows:
        return [Words("No prompts are named, so intervals are over battles only.")]
    note = "Whole prompts are resampled: votes on one prompt depend on each other."
    grid = Grid(("score", "accuracy 95%", "AUC 95%"), rows)
    return [Heading("Intervals by prompt", note), grid]


def _tests(metrics: Metrics) -> list[Block]:
    """McNemar's tests of scores against each other, the systems and the best ruler."""
    tests = dict(metrics["mcnemar"])
    for key, other in (("versus_systems", "systems"), ("versus_best_ruler", "best ruler")):
        tests |= {f"{name} vs {other}": test for name, test in metrics.get(key, {}).items()}
    if not tests:
        return []
    rows = [[pair, *(test[k] for k in ("n", "only_first", "only_second", "p_value"))]
            for pair, test in tests.items()]  # fmt: skip
    note = "McNemar's exact test on the battles that have both; p adjusted by Holm's method."
    return [Heading("Score against score", note), Grid(TEST_COLUMNS, rows)]


def _ruler_blocks(metrics: Metrics) -> list[Block]:
    if "rulers" not in metrics:
        return []
    entries = [(name, strata["overall"]) for name, strata in metrics["rulers"].items()]
    entries.sort(key=lambda item: -abs((item[1]["auc"] or 0.5) - 0.5))
    left = [
        [name, strata["overall"]["auc"], strata["after_rulers"]["auc"],
         interval_text(strata["after_rulers"]["auc_ci95"])]
        for name, strata in metrics["scores"].items()
    ]  # fmt: skip
    return [
        Heading(
            "Rulers",
            "Simple measures of a song, without a better direction. A score that is right only "
            "because it follows one of them has an AUC of 0.5 once they are taken out.",
        ),
        _figure_grid("ruler", entries),
        Grid(("score", "AUC", "AUC after rulers", "95%"), left, "What is left after the rulers"),
    ]


def _group_blocks(metrics: Metrics) -> list[Block]:
    return [
        block
        for column, name, entry in by_entries(metrics)
        for block in (
            Heading(f"{name} by {column}", _gap_words(entry)),
            _figure_grid(column, entry["groups"].items()),
        )
    ]


def _gap_words(entry: Metrics) -> str:
    if entry["gap"] is None:
        return "Fewer than two groups have 10 battles."
    p_value = entry["p_value"]
    test = "" if p_value is None else f"; test of equal accuracy, p = {p_value:.2g} (Holm)"
    return f"The largest gap in accuracy is {entry['gap']:.3f}{test}."


def _reliability_blocks(entries: Metrics) -> list[Block]:
    note = "P(A wins) of a fit on the other folds against the share that A won, in ten bins."
    blocks: list[Block] = [Heading("Reliability", note)]
    for name, overall in entries.items():
        points = overall["reliability"]
        if not points:
            figure = nothing("too few groups of battles to hold any out")
        else:
            line = Line([p["predicted"] for p in points], [p["observed"] for p in points])
            figure = curves({"": line}, "predicted P(A wins)", "share A won", diagonal=True)
        ece = "" if overall["ece"] is None else f" (ECE {overall['ece']:.3f})"
        blocks.append(Picture(f"{name}{ece}", figure, f"reliability_{name}"))
    return blocks


def _system_blocks(metrics: Metrics) -> list[Block]:
    blocks: list[Block] = []
    for name, strata in metrics["scores"].items():
        cells = {
            tuple(stratum.removeprefix(_SYSTEM_PAIR).split(" vs ", 1)): (
                entry["accuracy"],
                entry["n"],
            )
            for stratum, entry in strata.items()
            if stratum.startswith(_SYSTEM_PAIR)
        }
        if cells:
            systems = sorted({system for pair in cells for system in pair})
            caption, figure = f"Accuracy of {name} per pair of systems", heat_map(systems, cells)
            blocks.append(Picture(caption, figure, f"systems_{name}", wide=len(systems) > 4))
    if not blocks:
        return []
    note = "Share of battles between two systems whose higher-scored side won; small n says little."
    return [Heading("By system", note), *blocks]


def _disagreement_blocks(metrics: Metrics, folder: Path, battles: Path | None) -> list[Block]:
    """The battles where each score and the vote differ most, with players where songs are."""
    rows = [
        (name, row)
        for name, strata in metrics["scores"].items()
        for row in strata["overall"]["disagreements"]
    ]
    if not rows:
        return []
    start = None if battles is None else battles if battles.is_dir() else battles.parent
    songs = list(dict.fromkeys(row[f"audio_{s}"] for _, row in rows for s in "ab"))
    files = [start / name if start and name and (start / name).is_file() else None
             for name in songs]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    sources, words = place_songs(files, folder) if any(files) else ([None] * len(songs), "")
    address = dict(zip(songs, sources, strict=True))

    def side(row: Metrics, letter: str) -> object:
        shown = row[f"system_{letter}"] or row[f"audio_{letter}"]
        source = address[row[f"audio_{letter}"]]
        if source is None:
            return shown
        return Player(str(shown), source, f"song {letter.upper()}, {row['battle_uuid']}")

    cells = [
        [name, row["battle_uuid"], side(row, "a"), side(row, "b"), row["score_a"], row["score_b"],
         row["preference"], row["prompt"]]
        for name, row in rows
    ]  # fmt: skip
    columns = ("score", "battle", "A", "B", "score of A", "score of B", "vote", "prompt")
    note = "The votes that contradict each score most, the largest difference first."
    return [
        Heading("Where score and people differ most", note),
        Grid(columns, cells, "Battles where score and vote differ most"),
        *([Words(words)] if words else []),
    ]


def _voter_blocks(found: Metrics) -> list[Block]:
    if not found:
        return []
    rows = [[name, part["votes"], part["repeats"]] for name, part in found["voters"].items()]
    note = "No reward can agree with people more than they do with each other."
    grid = Grid(("voter", "votes", "of them repeats"), rows, "Votes of each voter")
    return [Heading("Voters", note), *map(Words, voter_words(found)), grid]


def _learning(curve: Sequence[Metrics]) -> Any:
    lines = {}
    for name in (name for name in COMPARED if name in curve[0]):
        points = [(row["anchors"], row[name]["accuracy"], row[name]["std"]) for row in curve]
        lines[name.replace("_", " ")] = Line(
            [anchors for anchors, _, _ in points],
            [mean for _, mean, _ in points],
            [mean - spread for _, mean, spread in points],
            [mean + spread for _, mean, spread in points],
        )
    return curves(lines, "anchor votes", "accuracy (share of battles)")


def _board_blocks(name: str, rows: Sequence[Metrics]) -> list[Block]:
    several = max(row["component"] for row in rows) > 1
    note = "400 points per factor ten of odds; the systems' mean is 1000."
    if several:
        note += (
            " Systems of different components never met, directly or through others: their scores "
            "cannot be compared, and each component has a mean of its own."
        )
    columns = ("system", "score", "lower 95%", "upper 95%", "battles")
    cells = [
        [row["system"], *(None if row[key] is None else f"{row[key]:.0f}"
                          for key in ("score", "lower", "upper")), row["battles"]]
        + [row["component"]] * several
        for row in rows
    ]  # fmt: skip
    grid = Grid((*columns, "component") if several else columns, cells)
    return [Heading(f"Arena scores from {name}", note), grid]


def _drawn(row: Metrics, rows: Sequence[Metrics]) -> tuple[float, float] | None:
    """The interval of a forest plot; an open end reaches to the end of the others."""
    if row["lower"] is None:
        return None
    ends = [end for other in rows for end in (other["upper"], other["score"]) if end is not None]
    return row["lower"], row["upper"] if row["upper"] is not None else max(ends)


def _rank_words(part: Metrics) -> str:
    value, interval = part["rank_correlation"], part["rank_correlation_ci95"]
    text = "not defined" if value is None else f"{value:.3f}"
    if interval is not None:
        text += f", 95% interval {interval[0]:.3f} to {interval[1]:.3f}"
    return f"Rank correlation of the systems with the votes' order: {text} ({part['n']} battles)."
