"""The arena's reports: the content of `metrics.json` in words, tables and plots.

`*_summary` are the blocks that a terminal shows; the pages have them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.arena.calibration import COMPARED
from apex_reward.arena.figures import CLAIMS
from apex_reward.arena.protocol import table3_caption, table3_grid
from apex_reward.arena.voters import voter_words
from apex_reward.arena.words import by_entries, findings
from apex_reward.report import document
from apex_reward.report.charts import Entry, Line, curves, forest, heat_map, nothing
from apex_reward.report.document import Block, Grid, Heading, Picture, Words, interval_text
from apex_reward.report.markdown import markdown_table
from apex_reward.report.songs import players

Metrics = Mapping[str, Any]
Entries = Sequence[tuple[str, Metrics]]
COLUMNS = {
    "n": "n",
    "accuracy": "accuracy",
    "95%": "accuracy_ci95",
    "AUC": "auc",
    "AUC 95%": "auc_ci95",
    "direction": "direction",
}
BY_PROMPT = {
    "accuracy 95% by prompt": "accuracy_ci95_by_prompt",
    "AUC 95% by prompt": "auc_ci95_by_prompt",
}
TEST_COLUMNS = {
    "n": "n",
    "only the first right": "only_first",
    "only the second right": "only_second",
    "p": "p_value",
}
CALIBRATED = {
    "uncalibrated": "uncalibrated",
    "calibrated": "calibrated, scores and systems",
    "songs_only": "calibrated, without the systems",
    "system_only": "systems alone, without the score",
}
_COLOURS = {"agrees": "good", "opposes": "bad", "undetermined": "neutral"}
_TONES: dict[bool | None, str] = {True: "good", False: "warning", None: "plain"}
_SYSTEM_PAIR = "system_pair:"


def evaluation_summary(metrics: Metrics) -> list[Block]:
    """Figures of the main strata, what was left out, and the findings in words."""
    title = f"{metrics['n_decided']} decided of {metrics['n_battles']} battles"
    entries = [*_entries(metrics["scores"]), *_baselines(metrics)]
    blocks: list[Block] = [Heading(title), _figures("score", entries)]
    if left_out := [row for row in _reasons(metrics) if row[1]]:
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
    scores = metrics["scores"]
    entries = [*_entries(scores, "month:"), *_baselines(metrics)]
    by_prompt = any("auc_ci95_by_prompt" in strata["overall"] for strata in scores.values())
    prompts = (
        "Intervals by prompt resample whole prompts: votes on one prompt depend on each other."
        if by_prompt
        else "No prompts are named, so intervals are over battles only."
    )
    blocks: list[Block] = [
        *findings(metrics),
        Heading(
            "Agreement with votes",
            "Share of decided battles whose higher-scored side won, with its 95% interval; the "
            "dashed line is chance. Green agrees, red opposes, grey is undetermined or a baseline.",
        ),
        _accuracies(entries),
        _figures("score", entries, COLUMNS | BY_PROMPT if by_prompt else COLUMNS),
        Words(prompts),
        *_tests(metrics),
        *_rulers_and_groups(metrics),
        *_reliability(scores),
        *_systems(scores),
        *_disagreements(scores, folder, battles),
    ]
    if found := metrics.get("voters"):
        note = "No reward can agree with people more than they do with each other."
        blocks += [Heading("Voters", note), *map(Words, voter_words(found))]
    if table := metrics.get("classifiers"):
        blocks.append(Heading("The paper's protocol (Table 3)", table3_caption(table)))
        blocks += [Grid(*table3_grid(table), "Table 3"), Words(table["rules_line"], "warning")]
        blocks += map(Words, table["notes"])
    _write(folder, "Agreement with human votes", metrics, blocks, formats)


def calibration_summary(metrics: Metrics) -> list[Block]:
    """Held-out figures, the fitted slopes and biases, the learning curve and the verdict."""
    part = metrics["calibration"]
    entries = _entries(_calibrated(part))
    rows = [[kind, *item] for kind in ("slope", "bias") for item in part[kind].items()]
    blocks: list[Block] = [
        Heading(f"Held out, folds by {part['grouped_by']}"),
        _accuracies(entries),
        _figures("what", entries),
        Heading("The fitted preference", f"On all battles, in log-odds; L2 {part['l2']:g}."),
        Grid(("kind", "of", "log-odds"), rows),
    ]
    if curve := part.get("learning_curve"):
        blocks += _learning_curve(curve)
    return [*blocks, Words(part["verdict"], _TONES[part["adds_to_systems"]])]


def calibration_report(metrics: Metrics, folder: Path, formats: Sequence[str] = ()) -> None:
    """Write `report.html` and `report.md` of `arena calibrate` into `folder`."""
    reliability = _reliability(_calibrated(metrics["calibration"]))
    blocks = [*calibration_summary(metrics), *reliability]
    _write(folder, "Calibration on human votes", metrics, blocks, formats)


def calibration_parts(metrics: Metrics) -> list[str]:
    """What the card of a model with a calibrated preference states: its votes and its figures."""
    part = metrics["calibration"]
    slopes = markdown_table(("head", "log-odds per point"), list(part["slope"].items()))
    overall = [(label, strata["overall"]) for label, strata in _calibrated(part).items()]
    grid = _figures("what", overall)
    return [
        f"## Data\n\nIts mix `preference` was fitted to {metrics['n_decided']:,} decided votes of "
        f"{metrics['n_battles']:,} battles between songs.\n\n{slopes}",
        f"## Measured\n\nOn held-out votes, in {part['folds']} folds that keep each "
        f"{part['grouped_by']} together. {part['verdict']}\n\n"
        + markdown_table(grid.columns, grid.rows),
    ]


def _calibrated(part: Metrics) -> dict[str, Metrics]:
    return {label: part[name] for name, label in CALIBRATED.items() if name in part}


def leaderboard_summary(metrics: Metrics) -> list[Block]:
    """The boards, and how well their orders agree."""
    blocks = [*_board("votes", metrics["leaderboard"])]
    for name, part in metrics["scores"].items():
        value, interval = part["rank_correlation"], part["rank_correlation_ci95"]
        text = "not defined" if value is None else f"{value:.3f}"
        if interval is not None:
            text += f", 95% interval {interval[0]:.3f} to {interval[1]:.3f}"
        words = (
            f"Rank correlation of the systems with the votes' order: {text} ({part['n']} battles)."
        )
        blocks += [*_board(name, part["leaderboard"]), Words(words)]
    return blocks


def leaderboard_report(metrics: Metrics, folder: Path, formats: Sequence[str] = ()) -> None:
    """Write `report.html` and `report.md` of `arena leaderboard` into `folder`."""
    _write(folder, "Leaderboard of systems", metrics, leaderboard_summary(metrics), formats)


def _write(
    folder: Path, title: str, metrics: Metrics, blocks: Sequence[Block], formats: Sequence[str]
) -> None:
    """Write a report that ends with its data card: what was left out, and what made it."""
    card: list[Block] = [
        Heading("Data card", f"{metrics['n_battles']} battles were read. What was left out:"),
        Grid(("reason", "battles"), _reasons(metrics)),
        *map(Words, metrics["notes"]),
    ]
    if made := metrics.get("provenance"):
        words = f"Made by apex_reward {made['apex_reward']} from {made['battles']}."
        for table, facts in made["made_by"].items():
            told = [f"{key} {fact}" for key, fact in facts.items() if isinstance(fact, str | float)]
            words += f" Scores in {table}: {', '.join(told)}."
        card.append(Words(words))
    used, settings = metrics.get("n_decided"), metrics["settings"]
    battles = f"{metrics['n_used']} used" if used is None else f"{used} decided"
    subtitle = (
        f"{battles} of {metrics['n_battles']} battles; "
        f"{settings['bootstrap']} bootstrap rounds, seed {settings['seed']}"
    )
    document.write_document(folder, title, subtitle, [*blocks, *card], formats)


def _reasons(metrics: Metrics) -> list[tuple[str, int]]:
    return [(name.replace("_", " "), count) for name, count in metrics["dropped"].items()]


def _figures(name: str, entries: Entries, columns: Mapping[str, str] = COLUMNS) -> Grid:
    return document.record_grid(name, entries, columns)


def _entries(groups: Mapping[str, Metrics], more: str = CLAIMS[0]) -> Entries:
    """Name and figures of the main strata, and of those whose name begins with `more`."""
    return [
        (name if stratum == "overall" else f"{name}, {stratum}", entry)
        for name, strata in groups.items()
        for stratum, entry in strata.items()
        if stratum in CLAIMS or stratum.startswith(more)
    ]


def _baselines(metrics: Metrics) -> Entries:
    return [(name.replace("_", " "), part) for name, part in metrics["baselines"].items()]


def _accuracies(entries: Entries) -> Picture:
    rows = [
        Entry(
            label,
            entry["accuracy"],
            entry["accuracy_ci95"],
            _COLOURS.get(entry.get("direction", ""), "plain"),
            f"{entry['accuracy']:.3f} {interval_text(entry['accuracy_ci95'])}  n {entry['n']}",
        )
        for label, entry in entries
        if entry["accuracy"] is not None
    ]
    return Picture("Accuracy and 95% interval", forest(rows, "accuracy", 0.5), "accuracy")


def _tests(metrics: Metrics) -> Iterator[Block]:
    """McNemar's tests of scores against each other, the systems and the best ruler."""
    tests = dict(metrics["mcnemar"])
    for key, other in (("versus_systems", "systems"), ("versus_best_ruler", "best ruler")):
        tests |= {f"{name} vs {other}": test for name, test in metrics.get(key, {}).items()}
    if tests:
        note = "McNemar's exact test on the battles that have both; p adjusted by Holm's method."
        yield Heading("Score against score", note)
        yield _figures("compared", [*tests.items()], TEST_COLUMNS)


def _rulers_and_groups(metrics: Metrics) -> Iterator[Block]:
    if "rulers" in metrics:
        entries = [(name, strata["overall"]) for name, strata in metrics["rulers"].items()]
        entries.sort(key=lambda item: -abs((item[1]["auc"] or 0.5) - 0.5))
        left = [
            (name, {"score": strata["overall"]["auc"], **strata["after_rulers"]})
            for name, strata in metrics["scores"].items()
        ]
        columns = {"AUC": "score", "AUC after rulers": "auc", "95%": "auc_ci95"}
        yield Heading(
            "Rulers",
            "Simple measures of a song, without a better direction. A score that is right only "
            "because it follows one of them has an AUC of 0.5 once they are taken out.",
        )
        yield _figures("ruler", entries)
        yield document.record_grid("score", left, columns, "What is left after the rulers")
    for column, name, entry in by_entries(metrics):
        words = "Fewer than two groups have 10 battles."
        if entry["gap"] is not None:
            words = f"The largest gap in accuracy is {entry['gap']:.3f}"
            if entry["p_value"] is not None:
                words += f"; test of equal accuracy, p = {entry['p_value']:.2g} (Holm)"
            words += "."
        yield Heading(f"{name} by {column}", words)
        yield _figures(column, [*entry["groups"].items()])


def _reliability(groups: Mapping[str, Metrics]) -> Iterator[Block]:
    note = "P(A wins) of a fit on the other folds against the share that A won, in ten bins."
    yield Heading("Reliability", note)
    for name, strata in groups.items():
        overall = strata["overall"]
        points = overall["reliability"]
        figure = nothing("too few groups of battles to hold any out")
        if points:
            line = Line([p["predicted"] for p in points], [p["observed"] for p in points])
            figure = curves({"": line}, "predicted P(A wins)", "share A won", diagonal=True)
        ece = "" if overall["ece"] is None else f" (ECE {overall['ece']:.3f})"
        yield Picture(f"{name}{ece}", figure, f"reliability_{name}")


def _systems(scores: Metrics) -> Iterator[Block]:
    pictures = []
    for name, strata in scores.items():
        pairs = {
            tuple(stratum.removeprefix(_SYSTEM_PAIR).split(" vs ", 1)): entry
            for stratum, entry in strata.items()
            if stratum.startswith(_SYSTEM_PAIR)
        }
        if pairs:
            systems = sorted({system for pair in pairs for system in pair})
            cells = {pair: (entry["accuracy"], entry["n"]) for pair, entry in pairs.items()}
            caption, figure = f"Accuracy of {name} per pair of systems", heat_map(systems, cells)
            pictures.append(Picture(caption, figure, f"systems_{name}", wide=len(systems) > 4))
    if pictures:
        note = "Share of battles of two systems whose higher-scored side won; small n says little."
        yield Heading("By system", note)
        yield from pictures


def _disagreements(scores: Metrics, folder: Path, battles: Path | None) -> Iterator[Block]:
    """The battles where each score and the vote differ most, with players where songs are."""
    listed = [
        (n, row) for n, strata in scores.items() for row in strata["overall"]["disagreements"]
    ]
    if not listed:
        return
    start = None if battles is None else battles if battles.is_dir() else battles.parent
    songs: dict[str, tuple[str, Path, str]] = {}
    for _, row in listed:
        for side in "ab":
            name = row[f"audio_{side}"]
            if start is not None and name and (start / name).is_file():
                shown = row[f"system_{side}"] or name
                about = f"song {side.upper()}, {row['battle_uuid']}"
                songs.setdefault(name, (shown, start / name, about))
    made, words = players(songs.values(), folder)
    player = dict(zip(songs, made, strict=True))
    rows = [
        [
            name,
            row["battle_uuid"],
            *(player.get(row[f"audio_{s}"], row[f"system_{s}"] or row[f"audio_{s}"]) for s in "ab"),
            *(row[key] for key in ("score_a", "score_b", "preference", "prompt")),
        ]
        for name, row in listed
    ]
    columns = ("score", "battle", "A", "B", "score of A", "score of B", "vote", "prompt")
    note = "The votes that contradict each score most, the largest difference first."
    yield Heading("Where score and people differ most", f"{note} {words}".strip())
    yield Grid(columns, rows, "Battles where score and vote differ most")


def _learning_curve(curve: Sequence[Metrics]) -> Iterator[Block]:
    names = {name: name.replace("_", " ") for name in COMPARED if name in curve[0]}
    rows = [
        [row["anchors"], *(f"{row[n]['accuracy']:.3f} (sd {row[n]['std']:.3f})" for n in names)]
        for row in curve
    ]
    lines = {}
    for name, label in names.items():
        mean, std = ([row[name][key] for row in curve] for key in ("accuracy", "std"))
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        lines[label] = Line([row["anchors"] for row in curve], mean, low, high)
    draws = len(curve[0]["uncalibrated"]["repeats"])
    note = f"Mean accuracy on the test battles of {draws} draws."
    yield Heading("How many anchor votes?", note)
    yield Grid(("anchors", *names.values()), rows)
    figure = curves(lines, "anchor votes", "accuracy (share of battles)")
    note = "Bands: one standard deviation over the draws."
    yield Picture("Accuracy over anchor votes", figure, "learning", note)


def _board(name: str, rows: Sequence[Metrics]) -> Iterator[Block]:
    components = sorted({row["component"] for row in rows})
    note = "400 points per factor ten of odds; the systems' mean is 1000."
    if len(components) > 1:
        note += (
            " Systems of different components never met, directly or through others: their scores "
            "cannot be compared, and each component has a mean of its own."
        )
    yield Heading(f"Arena scores from {name}", note)
    keys = ("score", "lower", "upper")
    cells = [
        [
            row["system"],
            *(None if row[key] is None else f"{row[key]:.0f}" for key in keys),
            row["battles"],
            *([row["component"]] if len(components) > 1 else []),
        ]
        for row in rows
    ]
    columns = ("system", "score", "lower 95%", "upper 95%", "battles", "component")
    yield Grid(columns[: len(cells[0])], cells)
    # An interval without an upper end reaches to the end of the others.
    most = max(row[key] for row in rows for key in ("upper", "score") if row[key] is not None)
    for number in components:
        entries = [
            Entry(
                row["system"],
                row["score"],
                None if row["lower"] is None else (row["lower"], row["upper"] or most),
                "neutral",
                f"{row['score']:.0f}  n {row['battles']}",
            )
            for row in rows
            if row["component"] == number
        ]
        caption = f"Arena scores from {name}" + (f", component {number}" * (number > 1))
        yield Picture(caption, forest(entries, "Arena score", 1000.0), f"board_{name}_{number}")
