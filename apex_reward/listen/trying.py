"""The Try page: songs that are dropped on it are heard and forgotten, nothing is kept."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import HTMLResponse

from apex_reward.listen.look import gradient_strength, look, segment_curves
from apex_reward.listen.pages import Tabs, page, shown_name, uploaded
from apex_reward.report.document import render
from apex_reward.rewards.reward import Reward
from apex_reward.scores.mix import RewardMix


def try_routes(reward: Reward, tabs: Tabs) -> APIRouter:
    """The Try page of a reward."""
    router = APIRouter()
    settings = _settings(reward)

    @router.get("/try")
    def try_page() -> HTMLResponse:
        return page(
            "try",
            tabs,
            title="What does the reward hear?",
            settings=settings,
            reads_text=reward.model.reads_text,
            demonstration=reward.demonstration,
        )

    @router.post("/try")
    def heard(song: UploadFile, prompt: Annotated[str, Form()] = "") -> HTMLResponse:
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
    """What is rewarded, in a sentence."""
    names = ", ".join(str(source or name) for name, source in reward.sources.items())
    mix = str(reward.mix).replace(",", ", ") if isinstance(reward.mix, RewardMix) else "preference"
    words = [f"Model {names}", f"mix {mix}"]
    if reward.loudness is not None:
        words.append(f"at {reward.loudness:g} LUFS")
    if reward.caution:
        words.append(f"caution {reward.caution:g}")
    return "; ".join(words) + "."
