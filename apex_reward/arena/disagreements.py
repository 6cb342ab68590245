"""The battles to hear: where a score and the votes differ most, with players where songs are."""

from __future__ import annotations

from pathlib import Path

from apex_reward.arena.results import AgreementResult, Disagreement
from apex_reward.report.document import Block, Grid, Heading, Words
from apex_reward.report.songs import Player, place_songs


def disagreement_blocks(
    metrics: AgreementResult, folder: Path, battles: Path | None
) -> list[Block]:
    """The battles to hear: where each score and the vote differ most."""
    start = None if battles is None else battles if battles.is_dir() else battles.parent
    listed = [
        (name, row)
        for name, strata in metrics.scores.items()
        for row in strata.overall.disagreements or ()
    ]
    if not listed:
        return []
    songs = {
        audio: None
        for _, row in listed
        for audio in (row.audio_a, row.audio_b)
        if audio is not None
    }
    files = [start / name if start and (start / name).is_file() else None for name in songs]
    folder.mkdir(parents=True, exist_ok=True)
    sources, words = place_songs(files, folder) if any(files) else ([None] * len(songs), "")
    address = dict(zip(songs, sources, strict=True))

    def side(row: Disagreement, letter: str) -> object:
        audio, system = row.side(letter)
        shown, source = system or audio, None if audio is None else address.get(audio)
        if source is None:
            return shown
        return Player(str(shown), source, f"song {letter.upper()}, {row.battle_uuid}")

    rows = [
        [name, row.battle_uuid, side(row, "a"), side(row, "b"), row.score_a, row.score_b,
         row.preference, row.prompt]
        for name, row in listed
    ]  # fmt: skip
    columns = ("score", "battle", "A", "B", "score of A", "score of B", "vote", "prompt")
    note = "The votes that go furthest against each score, the worst first: battles to hear."
    return [
        Heading("Where score and people differ most", note),
        Grid(columns, rows, "Battles where score and vote differ most"),
        *([Words(words)] if words else []),
    ]
