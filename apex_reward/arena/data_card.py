"""What the figures were made of, as the last section of every report."""

from __future__ import annotations

from apex_reward.arena.results import Provenance, Result
from apex_reward.report.document import Block, Grid, Heading, Words

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


def data_card(metrics: Result) -> list[Block]:
    """Battles read, what was left out and why, notes, and who made the figures."""
    rows = [[reason, count, _REASONS.get(reason, "")] for reason, count in metrics.dropped.items()]
    notes = [Words(note) for note in metrics.notes]
    return [
        Heading("Data card", f"{metrics.n_battles} battles were read. What was left out:"),
        Grid(("reason", "battles", "meaning"), rows),
        *notes,
        *_provenance(metrics.provenance),
    ]


def _provenance(made: Provenance | None) -> list[Block]:
    """Who made the figures: this package's version, and each score table's model and mix."""
    if made is None:
        return []
    words = f"Made by apex_reward {made.apex_reward} from {made.battles}."
    for table, facts in made.made_by.items():
        told = [f"{key} {value}" for key, value in facts.items() if isinstance(value, (str, float))]
        words += f" Scores in {table}: {', '.join(told)}."
    return [Words(words)]
