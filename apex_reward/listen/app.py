"""The pages for people: Vote (blind), Compare (by name) and Try, as one local application."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, HTTPException, UploadFile
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apex_reward.arena.voters import voter_agreement
from apex_reward.errors import ApexError, DataError
from apex_reward.listen.look import gradient_strength, look, scores_of, segment_curves
from apex_reward.listen.session import Preference, Session
from apex_reward.listen.sound import Sounds
from apex_reward.listen.sources import Comparison
from apex_reward.report.document import render
from apex_reward.rewards.reward import Reward
from apex_reward.scores.mix import RewardMix

LOCAL = ("127.0.0.1", "localhost")
Tabs = Sequence[tuple[str, str]]
MOST_BYTES = 300_000_000
"""Of one song; an hour of 16-bit stereo is twice that."""
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


def make_app(
    session: Session | None = None,
    voter: str = "",
    *,
    reward: Reward | None = None,
    comparisons: Sequence[Comparison] = (),
) -> FastAPI:
    """The application: Vote with a session, Try with a reward, and Compare.

    Args:
        session: the vote. Compare shows its pairs to a voter who has answered all questions.
        voter: the name in the voter's field.
        reward: scores the songs of Try and of Compare.
        comparisons: pairs that Compare lists where there is no vote.

    Raises:
        UsageError: the reward's mix needs the other songs of a prompt.
    """
    tabs = [("vote", "/")] if session is not None else []
    tabs += [("compare", "/compare")] + ([("try", "/try")] if reward is not None else [])
    app = _application(LOCAL)
    if reward is not None:
        _add_try(app, reward, tabs)
    if session is not None:
        comparisons = session.comparisons
        _add_vote(app, session, tabs, voter)
    sounds = Sounds() if session is None else session.sounds
    _add_compare(app, comparisons, session, reward, sounds, tabs)

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


def try_app(reward: Reward, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The Try page alone, for a public place such as a Space. It keeps no song.

    Args:
        reward: scores the songs.
        hosts: names under which it may be reached; `*` is any.

    Raises:
        UsageError: the reward's mix needs the other songs of a prompt.
    """
    app = _application(hosts)
    _add_try(app, reward, [("try", "/try")])
    app.add_api_route("/", lambda: RedirectResponse("/try"))
    return app


def _application(hosts: Sequence[str]) -> FastAPI:
    app = FastAPI(title="apex_reward listen", docs_url=None, redoc_url=None, openapi_url=None)
    # Pages of other sites must not reach the local port by a name of theirs.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


def _add_try(app: FastAPI, reward: Reward, tabs: Tabs) -> None:
    """The Try page: it scores the songs that are dropped on it, and deletes them."""
    reward.check_single()

    @app.get("/try")
    def try_page() -> HTMLResponse:
        return page(
            "try",
            tabs,
            "How does the reward score a song?",
            settings=_settings(reward),
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


def _settings(reward: Reward) -> str:
    """The reward in a sentence."""
    names = ", ".join(str(source or name) for name, source in reward.sources.items())
    mix = str(reward.mix).replace(",", ", ") if isinstance(reward.mix, RewardMix) else "preference"
    words = [f"Model {names}", f"mix {mix}"]
    if reward.loudness is not None:
        words.append(f"at {reward.loudness:g} LUFS")
    if reward.caution:
        words.append(f"caution {reward.caution:g}")
    return "; ".join(words) + "."


def _add_vote(app: FastAPI, session: Session, tabs: Tabs, voter: str) -> None:
    """The Vote page of a session; `voter` is the name that it starts with."""

    @app.get("/")
    def vote_page() -> HTMLResponse:
        pairs, repeats = session.questions()
        asked = {"pairs": pairs, "repeats": repeats, "seconds": session.min_seconds}
        return page("vote", tabs, "Which song is better?", voter=voter, **asked)

    @app.post("/next")
    def following(asked: Asked) -> dict[str, Any]:
        found = session.ask(asked.voter, asked.page)
        if found is None:
            return {"done": True, "said": done_words(session.votes, asked.voter)}
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
        except DataError as error:
            raise HTTPException(409, str(error)) from error
        return {"ok": True}


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


def _add_compare(
    app: FastAPI,
    comparisons: Sequence[Comparison],
    session: Session | None,
    reward: Reward | None,
    sounds: Sounds,
    tabs: Tabs,
) -> None:
    """The Compare page: the pairs of Vote with names and scores, or two songs from the browser.

    Args:
        comparisons: pairs that it lists.
        session: a voter sees its pairs only after all questions are answered.
        reward: scores both songs; None shows the scores of the table.
    """

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

    @app.get("/compare")
    def compare_page() -> HTMLResponse:
        reads_text = reward is not None and reward.model.reads_text
        shown = {"pairs": bool(comparisons), "blind": session is not None}
        return page("compare", tabs, "Two songs side by side", reads_text=reads_text, **shown)

    @app.post("/compare")
    def two(
        first: UploadFile, second: UploadFile, prompt: Annotated[str, Form()] = ""
    ) -> HTMLResponse:
        with uploaded(first, second) as paths:
            return show(paths, [shown_name(first), shown_name(second)], prompt, {})

    @app.get("/compare/pairs")
    def pairs(voter: str = "") -> list[str]:
        return [": ".join(filter(None, [item.prompt, " / ".join(names_of(item))]))
                for item in listed(voter)]  # fmt: skip

    @app.get("/compare/pairs/{number}")
    def pair(number: int, voter: str = "") -> HTMLResponse:
        items = listed(voter)
        if not 0 <= number < len(items):
            raise HTTPException(404, f"there are {len(items)} pairs")
        with uploaded():
            item = items[number]
            return show(item.songs, names_of(item), item.prompt, item.scores)


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
    """Files that hold the songs that a browser sent; they are deleted afterwards.

    An `ApexError` within the block becomes an answer 422 with its message.

    Raises:
        HTTPException: 413 for a song that is too large, or 422.
    """
    with tempfile.TemporaryDirectory(prefix="apex-reward-") as folder:
        paths = []
        for number, song in enumerate(songs):
            if (song.size or 0) > MOST_BYTES:
                raise HTTPException(413, f"a song may have {MOST_BYTES / 1e6:.0f} MB")
            paths.append(Path(folder) / f"{number}.audio")
            with paths[-1].open("wb") as file:
                while data := song.file.read(1 << 20):
                    file.write(data)
        try:
            yield paths
        except ApexError as error:
            raise HTTPException(422, str(error)) from error


def shown_name(song: UploadFile) -> str:
    """The name of a song that a browser sent, without folders."""
    return (song.filename or "song").replace("\\", "/").rpartition("/")[2]
