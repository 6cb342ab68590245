"""The pages for people: Vote (blind), Compare (by name) and Try, as one local application."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apex_reward.listen.comparing import compare_routes
from apex_reward.listen.session import Session
from apex_reward.listen.sources import Comparison
from apex_reward.listen.trying import try_routes
from apex_reward.listen.voting import vote_routes
from apex_reward.rewards.reward import Reward

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
        session: what is voted on; its pairs stay closed on Compare until a voter is through.
        voter: the name that Vote starts with.
        reward: hears the songs of Try, and those of Compare.
        comparisons: pairs that Compare lists where nobody votes.

    Raises:
        UsageError: the reward's mix needs the other songs of a prompt.
    """
    tabs = [("compare", "/compare")]
    if session is not None:
        tabs.insert(0, ("vote", "/"))
        comparisons = session.comparisons
    if reward is not None:
        reward.check_single()
        tabs.append(("try", "/try"))
    app = _bare(LOCAL)
    app.include_router(compare_routes(comparisons, session, reward, tabs))
    if session is not None:
        app.include_router(vote_routes(session, tabs, voter))
    else:
        first = "/compare" if comparisons or reward is None else "/try"
        _start_at(app, first)
    if reward is not None:
        app.include_router(try_routes(reward, tabs))
    return app


def try_app(reward: Reward, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The Try page alone, for a public place such as a Space: it keeps nothing of what it hears.

    Args:
        reward: hears the songs.
        hosts: names under which it may be reached; `*` is any.

    Raises:
        UsageError: the reward's mix needs the other songs of a prompt.
    """
    reward.check_single()
    app = _bare(hosts)
    app.include_router(try_routes(reward, [("try", "/try")]))
    _start_at(app, "/try")
    return app


def _bare(hosts: Sequence[str]) -> FastAPI:
    app = FastAPI(title="apex_reward listen", docs_url=None, redoc_url=None, openapi_url=None)
    # Pages of other sites must not reach the local port by a name of theirs.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


def _start_at(app: FastAPI, address: str) -> None:
    @app.get("/")
    def start() -> RedirectResponse:
        return RedirectResponse(address)
