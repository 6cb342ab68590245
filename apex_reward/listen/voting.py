"""The Vote page and its requests; nothing that it sends names a song or a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel, Field

from apex_reward.arena.voters import voter_agreement
from apex_reward.errors import DataError
from apex_reward.listen.pages import Tabs, page, song_answer
from apex_reward.listen.session import Preference, Session

GONE = "this question is no longer open; load the page again"


class Asked(BaseModel):
    """Who asks for a question."""

    voter: str = Field(min_length=1, max_length=100)


class Vote(BaseModel):
    """A vote on the question of a ticket; seconds that each side was heard."""

    ticket: str
    preference: Preference
    seconds_a: float = Field(ge=0)
    seconds_b: float = Field(ge=0)


def vote_routes(session: Session, tabs: Tabs, voter: str = "") -> APIRouter:
    """The Vote page of a session; `voter` is the name that it starts with."""
    router = APIRouter()

    @router.get("/")
    def vote_page() -> HTMLResponse:
        return page("vote", tabs, title="Which song is better?", voter=voter)

    @router.post("/next")
    def following(asked: Asked) -> dict[str, Any]:
        found = session.ask(asked.voter)
        if found is None:
            return {"done": True, "said": done_words(session.votes, asked.voter)}
        ticket, one, left = found
        return {
            "done": False,
            "ticket": ticket,
            "prompt": one.question.comparison.prompt,
            "left": left,
            "needed": [session.needed(seconds) for seconds in one.seconds],
        }

    @router.get("/audio/{ticket}/{side}")
    def audio(ticket: str, side: int) -> FileResponse:
        if side not in (0, 1):
            raise HTTPException(404, GONE)
        try:
            return song_answer(session.wav(ticket, side))
        except KeyError as error:
            raise HTTPException(404, GONE) from error

    @router.post("/vote")
    def vote(cast: Vote) -> dict[str, bool]:
        try:
            session.cast(cast.ticket, cast.preference, (cast.seconds_a, cast.seconds_b))
        except KeyError as error:
            raise HTTPException(404, GONE) from error
        except DataError as error:
            raise HTTPException(409, str(error)) from error
        return {"ok": True}

    return router


def done_words(votes: Sequence[Mapping[str, Any]], voter: str) -> str:
    """What a voter reads at the end: how alike they answered repeats, and voters one another."""
    words = ["All done, thank you."]
    own = voter_agreement([vote for vote in votes if vote["voter"] == voter]).get("repeats")
    if own and own["comparisons"]:
        words.append(f"You answered {own['equal']:.0%} of {own['comparisons']} repeats as before.")
    between = voter_agreement(votes).get("between")
    if between and between["comparisons"]:
        words.append(
            f"Voters agree on {between['equal']:.0%} of the {between['comparisons']} questions "
            "that several answered."
        )
    return " ".join(words)
