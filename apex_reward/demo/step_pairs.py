"""The tour's step on preference pairs: damaged versions against clean ones, listed and heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.pairs.build import build
from apex_reward.pairs.candidates import read_candidates
from apex_reward.pairs.export import summary, write_folder
from apex_reward.pairs.options import PairOptions
from apex_reward.pairs.report import write_report


def run(folder: Path, songs: Sequence[Path], scores: Sequence[Mapping[str, Any]]) -> str:
    """Pair the versions of each song and write `folder/pairs`.

    Args:
        folder: of the tour.
        songs: the scored files, in the order of `scores`.
        scores: score rows with `prompt_id`, the name of the song they are versions of.

    Returns:
        Text for a person: how many pairs, the clearest ones, where to listen.
    """
    rows = [{**row, "audio": str(song)} for song, row in zip(songs, scores, strict=True)]
    options = PairOptions("top-bottom", "musicality", top_k=3, max_pairs_per_candidate=1)
    result = build(read_candidates(rows), options)
    write_folder(result, folder / "pairs")
    write_report(result, folder / "pairs")
    counts = summary(result)
    lines = [
        f"{counts['n_candidates']} versions of {counts['n_prompts']} songs "
        f"-> {counts['n_pairs']} preference pairs on musicality, the best three of each song "
        "against its worst three; the widest margins:"
    ]
    audio, prompt = result.candidates.table["audio"], result.candidates.table["prompt_id"]
    order = (-result.margin).argsort(kind="stable")[:3]
    for at in order.tolist():
        chosen, rejected = (
            Path(audio[int(side[at])].as_py()).name for side in (result.chosen, result.rejected)
        )
        song = prompt[int(result.chosen[at])]
        lines.append(f"  {song}: {chosen} over {rejected} by {result.margin[at]:.2f}")
    lines.append(f"listen to all of them: {folder / 'pairs' / 'report.html'}")
    return "\n".join(lines)
