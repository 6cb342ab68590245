"""`apex-reward listen`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from apex_reward.cli.common import File, show
from apex_reward.cli.rewards import RewardOptions, RunOptions, build_reward
from apex_reward.errors import UsageError


@dataclass(frozen=True)
class QuestionOptions:
    """Votes.

    Args:
        seed: random seed of the order and the sides.
        order: `informative` asks first what the votes so far leave open.
        min_seconds: listening time of each song before a vote counts.
    """

    seed: int = 0
    order: Literal["random", "informative"] = "random"
    min_seconds: Annotated[float, "SECONDS", (0, None)] = 3.0


def listen(
    source: Annotated[Path | None, "PAIRS|BATTLES|FOLDER"] = None,
    /,
    *,
    asked: RewardOptions,
    running: RunOptions,
    questions: QuestionOptions,
    output: File = Path("votes.jsonl"),
    votes: bool = True,
    voter: Annotated[str, "NAME"] = "",
    port: Annotated[int, (1, 65535)] = 7860,
) -> None:
    """Try songs, compare two, and vote blind on a local page.

    Example: apex-reward listen pairs/pairs.jsonl --output votes.jsonl

    Args:
        source: a table of pairs or battles, or a folder with a sub-folder per system. None: songs
            are dropped on the pages.
        output: votes (.jsonl). New votes are added to an existing file.
        votes: vote blind, or compare openly by name.
        voter: name in the voter's field of the page.
        port: port of the page.
    """
    try:
        import uvicorn

        from apex_reward.listen.app import make_app
    except ImportError as error:
        raise UsageError(
            f"listening needs `pip install 'apex-reward[listen]'` ({error})"
        ) from error
    from apex_reward.listen.session import Session
    from apex_reward.listen.sources import read_comparisons

    if output.suffix.lower() != ".jsonl":
        raise UsageError(f"--output {output}: votes are written as .jsonl")
    comparisons = [] if source is None else read_comparisons(source)
    session = None
    if comparisons and votes:
        session = Session(comparisons, output, **vars(questions))
    # Without a source the pages try songs, which needs a model.
    judge = build_reward(asked, running) if asked.given or source is None else None
    app = make_app(session, voter, reward=judge, comparisons=comparisons)
    goes = f"; votes go to {output}" if session else ""
    show(f"listen on http://127.0.0.1:{port}{goes}; stop with Ctrl-C")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
    for reason in session.unreadable.values() if session else ():
        show(f"not asked: {reason}")
