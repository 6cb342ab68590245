"""The pages for people: Vote (blind), Compare (by name) and Try, as one local application."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, FastAPI, Form, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apex_reward.listen.look import gradient_strength, look, segment_curves
from apex_reward.listen.pages import Tabs, page, shown_name, uploaded
from apex_reward.listen.session import Session
from apex_reward.listen.sound import Sounds
from apex_reward.listen.sources import Comparison
from apex_reward.listen.voting import compare_routes, sound_routes, vote_routes
from apex_reward.report.document import render
from apex_reward.rewards.reward import Reward
from apex_reward.scores.mix import RewardMix

LOCAL = ("127.0.0.1", "localhost")


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
    tabs = [("compare", "/compare")]
    sounds = Sounds() if session is None else session.sounds
    routers = [sound_routes(sounds)]
    first = "/compare" if comparisons or reward is None else "/try"
    if session is not None:
        first, comparisons = "/", session.comparisons
        tabs.insert(0, ("vote", "/"))
    if reward is not None:
        reward.check_single()
        tabs.append(("try", "/try"))
        routers.append(_try_routes(reward, tabs))
    if session is not None:
        routers.append(vote_routes(session, tabs, voter))
    routers.append(compare_routes(comparisons, session, reward, sounds, tabs))
    return _application(routers, LOCAL, first)


def try_app(reward: Reward, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The Try page alone, for a public place such as a Space. It keeps no song.

    Args:
        reward: scores the songs.
        hosts: names under which it may be reached; `*` is any.

    Raises:
        UsageError: the reward's mix needs the other songs of a prompt.
    """
    reward.check_single()
    return _application([_try_routes(reward, [("try", "/try")])], hosts, "/try")


def _application(routers: Sequence[APIRouter], hosts: Sequence[str], first: str) -> FastAPI:
    app = FastAPI(title="apex_reward listen", docs_url=None, redoc_url=None, openapi_url=None)
    # Pages of other sites must not reach the local port by a name of theirs.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    for router in routers:
        app.include_router(router)
    if first != "/":
        app.add_api_route("/", lambda: RedirectResponse(first))
    return app


def _try_routes(reward: Reward, tabs: Tabs) -> APIRouter:
    """The Try page: it scores the songs that are dropped on it, and deletes them."""
    router = APIRouter()

    @router.get("/try")
    def try_page() -> HTMLResponse:
        return page(
            "try",
            tabs,
            "How does the reward score a song?",
            settings=_settings(reward),
            reads_text=reward.model.reads_text,
            demonstration=reward.demonstration,
        )

    @router.post("/try")
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

    @router.post("/try/gradient")
    def gradient(song: UploadFile, prompt: Annotated[str, Form()] = "") -> list[float]:
        with uploaded(song) as (path,):
            return gradient_strength(reward, path, prompt)

    return router


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
