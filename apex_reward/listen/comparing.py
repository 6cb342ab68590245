"""The Compare page: two songs side by side at equal loudness, by name."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, UploadFile
from fastapi.responses import FileResponse, HTMLResponse

from apex_reward.listen.look import scores_of
from apex_reward.listen.pages import Tabs, page, shown_name, song_answer, uploaded
from apex_reward.listen.session import Session
from apex_reward.listen.sound import Wav, equally_loud
from apex_reward.listen.sources import Comparison
from apex_reward.report.document import render
from apex_reward.rewards.reward import Reward

KEPT = 8  # comparisons whose sound is held for the page
NOT_YET = "the pairs open up here once you have answered all of their questions on Vote"


class _Sounds:
    """The WAV files of the latest comparisons."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[Wav, Wav]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, wavs: tuple[Wav, Wav]) -> str:
        ticket = uuid.uuid4().hex
        with self._lock:
            self._held[ticket] = wavs
            while len(self._held) > KEPT:
                self._held.popitem(last=False)
        return ticket

    def wav(self, ticket: str, side: int) -> Wav:
        with self._lock:
            if ticket not in self._held or side not in (0, 1):
                raise HTTPException(404, "this comparison is no longer held; compare once more")
            return self._held[ticket][side]


def compare_routes(
    comparisons: Sequence[Comparison], session: Session | None, reward: Reward | None, tabs: Tabs
) -> APIRouter:
    """The Compare page.

    Args:
        comparisons: pairs that it lists.
        session: where there is one, voters see its pairs only once they have answered them all.
        reward: scores both songs; None shows the scores of the table.
    """
    router = APIRouter()
    sounds = _Sounds()

    def side_by_side(
        paths: Sequence[Path], names: Sequence[str], prompt: str, scores: Mapping[str, Any]
    ) -> HTMLResponse:
        wavs, _ = equally_loud(paths[0], paths[1])
        rows = _rows(reward, paths, prompt, scores)
        ticket = sounds.keep(wavs)
        template = "listen/templates/compare_two.html"
        return HTMLResponse(render(template, ticket=ticket, names=names, prompt=prompt, rows=rows))

    @router.get("/compare")
    def compare_page() -> HTMLResponse:
        return page(
            "compare",
            tabs,
            title="Two songs side by side",
            pairs=bool(comparisons),
            blind=session is not None,
            reads_text=reward is not None and reward.model.reads_text,
        )

    @router.post("/compare")
    def two(
        first: UploadFile, second: UploadFile, prompt: Annotated[str, Form()] = ""
    ) -> HTMLResponse:
        with uploaded(first, second) as paths:
            return side_by_side(paths, [shown_name(first), shown_name(second)], prompt, {})

    @router.get("/compare/pairs")
    def pairs(voter: str = "") -> list[str]:
        return [_title(item) for item in _visible(comparisons, session, voter)]

    @router.get("/compare/pairs/{number}")
    def pair(number: int, voter: str = "") -> HTMLResponse:
        listed = _visible(comparisons, session, voter)
        if not 0 <= number < len(listed):
            raise HTTPException(404, f"there are {len(listed)} pairs")
        item = listed[number]
        with uploaded():
            return side_by_side(item.songs, _names(item), item.prompt, item.scores)

    @router.get("/compare/audio/{ticket}/{side}")
    def audio(ticket: str, side: int) -> FileResponse:
        return song_answer(sounds.wav(ticket, side))

    return router


def _visible(
    comparisons: Sequence[Comparison], session: Session | None, voter: str
) -> Sequence[Comparison]:
    if session is not None and not session.finished(voter):
        raise HTTPException(403, NOT_YET)
    return comparisons


def _rows(
    reward: Reward | None, paths: Sequence[Path], prompt: str, scores: Mapping[str, Any]
) -> list[list[Any]]:
    """Name, both values and the lead of every score, the given ones first."""
    found = dict(scores)
    if reward is not None:
        one, other = (scores_of(reward, path, prompt) for path in paths)
        columns = [head.name for head in reward.heads] + ["reward"]
        found |= {name: (one[name], other[name]) for name in columns}
    return [[name, a, b, _lead(a, b)] for name, (a, b) in found.items()]


def _lead(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _names(item: Comparison) -> list[str]:
    return [
        f"{system}: {path.name}" if system else path.name
        for system, path in zip(item.systems, item.songs, strict=True)
    ]


def _title(item: Comparison) -> str:
    songs = " / ".join(_names(item))
    return f"{item.prompt}: {songs}" if item.prompt else songs
