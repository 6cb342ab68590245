"""The pages for people: Vote (blind), Compare (by name) and Try, as one local application."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apex_reward.errors import ApexError
from apex_reward.listen.look import gradient_strength, look, segment_curves
from apex_reward.listen.session import Preference, Session
from apex_reward.listen.sound import Sounds
from apex_reward.listen.sources import Comparison
from apex_reward.report.document import render
from apex_reward.rewards.reward import Reward

LOCAL = ("127.0.0.1", "localhost")
Tabs = Sequence[tuple[str, str]]
GONE = "this question is no longer open"
GONE_SONGS = "these songs are no longer kept; load the page again"


class Asked(BaseModel):
    """The voter's name, and an identity that the page keeps for as long as its tab is open."""

    voter: str = Field(min_length=1, max_length=100)
    page: str = Field("", max_length=100)


class Vote(BaseModel):
    """A vote on the question of a ticket; for how many seconds each side was heard."""

    ticket: str
    preference: Preference
    seconds_a: float = Field(ge=0)
    seconds_b: float = Field(ge=0)


def make_app(
    session: Session | None = None,
    *,
    reward: Reward | None = None,
    comparisons: Sequence[Comparison] = (),
) -> FastAPI:
    """The application: Vote with a session, Try with a reward, and Compare.

    Args:
        session: the vote.
        reward: scores the songs of Try.
        comparisons: pairs that Compare lists by name.

    Raises:
        UsageError: the reward's mix needs the other songs of a prompt.
    """
    tabs = [("vote", "/")] if session is not None else []
    tabs += [("compare", "/compare")] + ([("try", "/try")] if reward is not None else [])
    app = _application(LOCAL)
    if reward is not None:
        _add_try(app, reward, tabs)
    if session is not None:
        _add_vote(app, session, tabs)
    sounds = Sounds() if session is None else session.sounds
    _add_compare(app, comparisons, sounds, tabs)

    @app.get("/audio/{ticket}/{side}")
    def audio(ticket: str, side: int) -> FileResponse:  # a player may ask for parts (HTTP Range)
        try:
            return FileResponse(sounds.wav(ticket, side).name, media_type="audio/wav")
        except KeyError as error:
            raise HTTPException(404, GONE_SONGS) from error

    first = "/try" if reward is not None and not comparisons else "/compare"
    if session is None:
        app.add_api_route("/", lambda: RedirectResponse(first))
    return app


def try_app(reward: Reward) -> FastAPI:
    """The Try page alone, for a public place such as a Space. It keeps no song.

    Raises:
        UsageError: the reward's mix needs the other songs of a prompt.
    """
    app = _application(["*"])
    _add_try(app, reward, [("try", "/try")])
    app.add_api_route("/", lambda: RedirectResponse("/try"))
    return app


def _application(hosts: Sequence[str]) -> FastAPI:
    app = FastAPI(title="apex_reward listen", docs_url=None, redoc_url=None, openapi_url=None)
    # Pages of other sites must not reach the local port by a name of theirs.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_exception_handler(ApexError, _refused)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


def _add_try(app: FastAPI, reward: Reward, tabs: Tabs) -> None:
    """The Try page: it scores the songs that are dropped on it, and deletes them."""
    reward.check_single()

    @app.get("/try")
    def try_page() -> HTMLResponse:
        return page(
            "try",
            tabs,
            "How does the reward score a song?",
            reads_text=reward.model.reads_text,
            demonstration=reward.demonstration,
        )

    @app.post("/try")
    def score(song: UploadFile, prompt: Annotated[str, Form()] = "") -> HTMLResponse:
        with uploaded(song) as (path,):
            seen = look(reward, path, prompt)
        return HTMLResponse(
            render(
                "listen/templates/try_song.html",
                name=shown_name(song),
                look=seen,
                curves=segment_curves(reward, seen.segments),
                token=uuid.uuid4().hex[:8],
                differentiable=reward.model.differentiable,
            )
        )

    @app.post("/try/gradient")
    def gradient(song: UploadFile, prompt: Annotated[str, Form()] = "") -> list[float]:
        with uploaded(song) as (path,):
            return gradient_strength(reward, path, prompt)


def _add_vote(app: FastAPI, session: Session, tabs: Tabs) -> None:
    """The Vote page of a session."""

    @app.get("/")
    def vote_page() -> HTMLResponse:
        pairs, repeats = session.questions()
        asked = {"pairs": pairs, "repeats": repeats, "seconds": session.min_seconds}
        return page("vote", tabs, "Which song is better?", **asked)

    @app.post("/next")
    def following(asked: Asked) -> dict[str, Any]:
        found = session.ask(asked.voter, asked.page)
        if found is None:
            return {"done": True}
        ticket, one, left = found
        needed = [session.needed(seconds) for seconds in one.seconds]
        shown = {"prompt": one.question.comparison.prompt, "left": left, "needed": needed}
        return {"done": False, "ticket": ticket, **shown}

    @app.post("/vote")
    def vote(cast: Vote) -> dict[str, bool]:
        try:
            session.cast(cast.ticket, cast.preference, (cast.seconds_a, cast.seconds_b))
        except KeyError as error:
            raise HTTPException(404, GONE) from error
        return {"ok": True}


def _add_compare(
    app: FastAPI, comparisons: Sequence[Comparison], sounds: Sounds, tabs: Tabs
) -> None:
    """The Compare page: pairs with their names, or two songs from the browser."""

    def show(paths: Sequence[Path], names: Sequence[str], prompt: str = "") -> HTMLResponse:
        ticket, _ = sounds.add(paths[0], paths[1])
        template = "listen/templates/compare_two.html"
        return HTMLResponse(render(template, ticket=ticket, names=names, prompt=prompt))

    @app.get("/compare")
    def compare_page() -> HTMLResponse:
        pairs = [": ".join(filter(None, [item.prompt, " / ".join(names_of(item))]))
                 for item in comparisons]  # fmt: skip
        return page("compare", tabs, "Two songs side by side", pairs=pairs)

    @app.post("/compare")
    def two(first: UploadFile, second: UploadFile) -> HTMLResponse:
        with uploaded(first, second) as paths:
            return show(paths, [shown_name(first), shown_name(second)])

    @app.get("/compare/pairs/{number}")
    def pair(number: int) -> HTMLResponse:
        item = comparisons[number]
        return show(item.songs, names_of(item), item.prompt)


def names_of(item: Comparison) -> list[str]:
    """System and file name of both songs."""
    pairs = zip(item.systems, item.songs, strict=True)
    return [f"{system}: {path.name}" if system else path.name for system, path in pairs]


def page(name: str, tabs: Tabs, title: str, **values: Any) -> HTMLResponse:
    """The page `name` with links to the others; `tabs` are names and addresses."""
    values |= {"title": title, "subtitle": "", "tabs": tabs if len(tabs) > 1 else [], "here": name}
    return HTMLResponse(render(f"listen/templates/{name}.html", **values))


@contextmanager
def uploaded(*songs: UploadFile) -> Iterator[list[Path]]:
    """Files that hold the songs that a browser sent; they are deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="apex-reward-") as folder:
        paths = [Path(folder) / f"{number}.audio" for number in range(len(songs))]
        for path, song in zip(paths, songs, strict=True):
            with path.open("wb") as file:
                shutil.copyfileobj(song.file, file)
        yield paths


def shown_name(song: UploadFile) -> str:
    """The name of a song that a browser sent, without folders."""
    return (song.filename or "song").replace("\\", "/").rpartition("/")[2]
