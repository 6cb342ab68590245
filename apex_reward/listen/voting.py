"""Two songs at a time: Vote, which names no song and no system, and Compare, which names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, UploadFile
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel, Field

from apex_reward.arena.voters import voter_agreement
from apex_reward.errors import DataError
from apex_reward.listen.look import scores_of
from apex_reward.listen.pages import Tabs, page, shown_name, uploaded
from apex_reward.listen.session import Preference, Session
from apex_reward.listen.sound import Sounds
from apex_reward.listen.sources import Comparison
from apex_reward.report.document import render
from apex_reward.rewards.reward import Reward

GONE = "this question is no longer open"
GONE_SONGS = "these songs are no longer kept; load the page again"
NOT_YET = "the pairs open up here once you have answered all of their questions on Vote"


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


def sound_routes(sounds: Sounds) -> APIRouter:
    """The songs of both pages. A player may ask for parts of one (HTTP Range)."""
    router = APIRouter()

    @router.get("/audio/{ticket}/{side}")
    def audio(ticket: str, side: int) -> FileResponse:
        try:
            return FileResponse(sounds.wav(ticket, side).name, media_type="audio/wav")
        except KeyError as error:
            raise HTTPException(404, GONE_SONGS) from error

    return router


def vote_routes(session: Session, tabs: Tabs, voter: str = "") -> APIRouter:
    """The Vote page of a session; `voter` is the name that it starts with."""
    router = APIRouter()

    @router.get("/")
    def vote_page() -> HTMLResponse:
        pairs, repeats = session.questions()
        asked = {"pairs": pairs, "repeats": repeats, "seconds": session.min_seconds}
        return page("vote", tabs, "Which song is better?", voter=voter, **asked)

    @router.post("/next")
    def following(asked: Asked) -> dict[str, Any]:
        found = session.ask(asked.voter, asked.page)
        if found is None:
            return {"done": True, "said": done_words(session.votes, asked.voter)}
        ticket, one, left = found
        needed = [session.needed(seconds) for seconds in one.seconds]
        shown = {"prompt": one.question.comparison.prompt, "left": left, "needed": needed}
        return {"done": False, "ticket": ticket, **shown}

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
    """The last message to a voter: how alike they answered repeats, and voters one another."""
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


def compare_routes(
    comparisons: Sequence[Comparison],
    session: Session | None,
    reward: Reward | None,
    sounds: Sounds,
    tabs: Tabs,
) -> APIRouter:
    """The Compare page: the pairs of Vote with names and scores, or two songs from the browser.

    Args:
        comparisons: pairs that it lists.
        session: a voter sees its pairs only after all questions are answered.
        reward: scores both songs; None shows the scores of the table.
    """
    router = APIRouter()

    def show(paths: Sequence[Path], names: Sequence[str], prompt: str, scores: Any) -> HTMLResponse:
        ticket, _ = sounds.add(paths[0], paths[1])
        values = dict(scores)
        if reward is not None:
            a, b = (scores_of(reward, path, prompt) for path in paths)
            columns = [*(head.name for head in reward.heads), "reward"]
            values |= {name: (a[name], b[name]) for name in columns}
        rows = [[name, a, b, None if None in (a, b) else a - b] for name, (a, b) in values.items()]
        template = "listen/templates/compare_two.html"
        return HTMLResponse(render(template, ticket=ticket, names=names, prompt=prompt, rows=rows))

    def listed(voter: str) -> Sequence[Comparison]:
        if session is not None and not session.finished(voter):
            raise HTTPException(403, NOT_YET)
        return comparisons

    @router.get("/compare")
    def compare_page() -> HTMLResponse:
        reads_text = reward is not None and reward.model.reads_text
        shown = {"pairs": bool(comparisons), "blind": session is not None}
        return page("compare", tabs, "Two songs side by side", reads_text=reads_text, **shown)

    @router.post("/compare")
    def two(
        first: UploadFile, second: UploadFile, prompt: Annotated[str, Form()] = ""
    ) -> HTMLResponse:
        with uploaded(first, second) as paths:
            return show(paths, [shown_name(first), shown_name(second)], prompt, {})

    @router.get("/compare/pairs")
    def pairs(voter: str = "") -> list[str]:
        return [": ".join(filter(None, [item.prompt, " / ".join(names_of(item))]))
                for item in listed(voter)]  # fmt: skip

    @router.get("/compare/pairs/{number}")
    def pair(number: int, voter: str = "") -> HTMLResponse:
        items = listed(voter)
        if not 0 <= number < len(items):
            raise HTTPException(404, f"there are {len(items)} pairs")
        with uploaded():
            item = items[number]
            return show(item.songs, names_of(item), item.prompt, item.scores)

    return router


def names_of(item: Comparison) -> list[str]:
    """System and file name of both songs."""
    pairs = zip(item.systems, item.songs, strict=True)
    return [f"{system}: {path.name}" if system else path.name for system, path in pairs]
