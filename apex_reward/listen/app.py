"""The voting page and its three requests; nothing that it sends names a song or a system."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apex_reward.errors import DataError
from apex_reward.listen.session import Preference, Session
from apex_reward.report.page import render

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


def make_app(session: Session, voter: str = "") -> FastAPI:
    """The application of a session; `voter` is the name that the page starts with."""
    app = FastAPI(title="apex_reward listen", docs_url=None, redoc_url=None)
    # Pages of other sites must not reach the local port by a name of theirs.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(
            render("listen/templates/listen.html", title="Which song is better?", subtitle="",
                   voter=voter)
        )  # fmt: skip

    @app.post("/next")
    def following(asked: Asked) -> dict[str, Any]:
        found = session.ask(asked.voter)
        if found is None:
            return {"done": True}
        ticket, one, left = found
        return {
            "done": False,
            "ticket": ticket,
            "prompt": one.question.comparison.prompt,
            "left": left,
            "needed": [session.needed(seconds) for seconds in one.seconds],
        }

    @app.get("/audio/{ticket}/{side}")
    def audio(ticket: str, side: int) -> Response:
        if side not in (0, 1):
            raise HTTPException(404, GONE)
        try:
            return Response(session.wav(ticket, side), media_type="audio/wav")
        except KeyError as error:
            raise HTTPException(404, GONE) from error

    @app.post("/vote")
    def vote(cast: Vote) -> dict[str, bool]:
        try:
            session.cast(cast.ticket, cast.preference, (cast.seconds_a, cast.seconds_b))
        except KeyError as error:
            raise HTTPException(404, GONE) from error
        except DataError as error:
            raise HTTPException(409, str(error)) from error
        return {"ok": True}

    return app
