"""The HTTP application: `/score`, `/openrlhf`, `/verl-omni`, `/info`, `/health`, `/metrics`.

A bad song is a row with its reason; a bad request is a 4xx with one sentence. `/offload` frees the
device between training steps, and `/onload` takes it back.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException

from apex_reward.errors import UsageError
from apex_reward.files.songs_inside import NoSong
from apex_reward.prompt import Prompt, prompt_of, prompts_of
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row
from apex_reward.rewards.saved import provenance
from apex_reward.rewards.stacks.samples import path_in
from apex_reward.serve.batching import Batcher, BusyError, OnBatch
from apex_reward.serve.gate import Gate
from apex_reward.serve.schemas import (
    HeadInfo,
    Info,
    OpenRLHFRequest,
    ScoreAnswer,
    ScoreRequest,
    SongIn,
    WaveformRequest,
)
from apex_reward.serve.settings import ServeSettings

# The file of a song (or a `NoSong` with the reason), and its name in the row.
Named = tuple[str, str]
STANDARD = str.maketrans("-_", "+/")


def make_app(reward: Reward, settings: ServeSettings, on_batch: OnBatch | None = None) -> FastAPI:
    """The application for one reward, of a lone process and of every replica.

    Args:
        on_batch: called with every batch, for metrics elsewhere.

    Raises:
        UsageError: a token file that cannot be read; a mix that needs whole prompt groups.
    """
    reward.check_single()
    state = _State(reward, settings, on_batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        # What was accepted is answered before the process ends.
        await asyncio.to_thread(state.batcher.close)

    app = FastAPI(title="apex_reward", lifespan=lifespan)
    app.state.batcher = state.batcher
    app.add_middleware(Gate, settings=settings)
    _add_errors(app)
    _add_scoring(app, state)
    _add_control(app, state)
    return app


class _State:
    """The reward behind a batcher, and how requests become songs."""

    def __init__(self, reward: Reward, settings: ServeSettings, on_batch: OnBatch | None) -> None:
        self.reward, self.settings = reward, settings
        self.about = provenance(reward)
        self.batcher = Batcher(reward, settings.limits, on_batch)

    async def judge(self, songs: Sequence[Named], prompts: Sequence[Prompt]) -> list[Row]:
        """Rows of files, once the batch that they share with others is done."""
        if len(songs) > self.settings.songs:
            raise HTTPException(
                413, f"{len(songs)} songs; a request takes at most {self.settings.songs}"
            )
        reads = self.reward.model.reads_text
        if reads and not any(prompt or prompt.lyrics for prompt in prompts):
            raise HTTPException(422, "the model judges songs by their prompts; give one per song")
        try:
            answers = self.batcher.submit(songs, prompts)
        except BusyError as error:
            raise HTTPException(503, f"busy: {error}", headers={"Retry-After": "1"}) from error
        try:
            return list(await asyncio.gather(*map(asyncio.wrap_future, answers)))
        except asyncio.CancelledError as error:
            raise HTTPException(503, "the server was stopped; ask for these songs again") from error

    def floor(self) -> float:
        """What a song that cannot be judged earns: less than any song of the mix."""
        try:
            return self.reward.floor
        except UsageError as error:
            raise HTTPException(422, f"this route cannot answer: {error}") from error

    def source(self, song: SongIn, folder: Path, number: int) -> Named:
        """The file and the name of one song of a JSON request."""
        if (song.audio is None) == (song.path is None):
            raise HTTPException(422, f"song {number}: give either 'audio' or 'path'")
        if song.path is not None:
            return self.below_root(song.path), song.name or song.path
        name = song.name or f"song {number}"
        try:
            return write(folder, number, decoded(song.audio or "")), name
        except ValueError as error:
            return NoSong(name, str(error)), name

    def below_root(self, name: str) -> str:
        """A path below the audio root, links followed."""
        root = self.settings.audio_root
        if root is None:
            raise HTTPException(403, "this server reads no paths; start it with --audio-root DIR")
        below = Path(root).resolve()
        try:
            path = (below / name).resolve()
        except (ValueError, OSError, RuntimeError) as error:
            raise HTTPException(422, f"{name[:80]!r} is no path: {error}") from error
        if not path.is_relative_to(below):
            raise HTTPException(403, f"{name[:80]!r} does not lie below the audio root")
        return str(path)

    def query(self, query: str, prompt: str, folder: Path, number: int) -> Named:
        """The song of an OpenRLHF query: base64 of a file where marked so, else a path.

        Text of a policy that is no path is a song that cannot be judged, not a bad request.
        """
        text = path_in(query, prompt) or query
        song = SongIn(audio=text) if text.startswith("data:") else SongIn(path=text)
        if self.settings.audio_root is None:
            return self.source(song, folder, number)
        try:
            return self.source(song, folder, number)
        except HTTPException as error:
            return NoSong(text, error.detail), text


def decoded(text: str) -> bytes:
    """Bytes of base64, also as a data URI.

    Line breaks, the URL alphabet and absent padding are read. ValueError for everything else.
    """
    plain = "".join(text.rpartition("base64,")[2].split()).translate(STANDARD).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"holds no base64 under 'audio': {error}") from error


def write(folder: Path, number: int, data: bytes) -> str:
    """The bytes as a file that a decoding process can read."""
    path = folder / f"{number}.audio"
    path.write_bytes(data)
    return str(path)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _add_scoring(app: FastAPI, state: _State) -> None:
    @app.post("/score")
    async def score(request: Request) -> ScoreAnswer:
        with tempfile.TemporaryDirectory() as name:
            songs, prompts = await _songs_of(request, state, Path(name))
            rows = await state.judge(songs, prompts)
        return ScoreAnswer(rows=rows, model=state.about)

    @app.post("/openrlhf")
    async def openrlhf(request: OpenRLHFRequest) -> dict[str, Any]:
        lowest = state.floor()
        prompts = prompts_of(request.prompts or [None] * len(request.query))
        if len(prompts) != len(request.query):
            raise HTTPException(422, f"{len(prompts)} prompts for {len(request.query)} queries")
        with tempfile.TemporaryDirectory() as name:
            songs = [
                state.query(query, prompt, Path(name), number)
                for number, (query, prompt) in enumerate(zip(request.query, prompts, strict=True))
            ]
            rows = await state.judge(songs, prompts)
        rewards = [lowest if row["error"] else row["reward"] for row in rows]
        logs: dict[str, list[float]] = {
            head.name: [0.0 if row["error"] else row[head.name] for row in rows]
            for head in state.reward.heads
        }
        logs["failed"] = [float(row["error"] is not None) for row in rows]
        errors = [row["error"] for row in rows]
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs, "errors": errors}

    @app.post("/verl-omni")
    async def verl_omni(request: WaveformRequest) -> dict[str, Any]:
        lowest = state.floor()
        with tempfile.TemporaryDirectory() as name:
            path = _waveform_file(request, Path(name))
            (row,) = await state.judge([(path, "waveform")], [prompt_of(request.prompt)])
        failed = row["error"] is not None
        heads = {head.name: 0.0 if failed else row[head.name] for head in state.reward.heads}
        flags = ";".join(row["flags"])
        score = lowest if failed else row["reward"]
        return {"score": score, **heads, "flags": flags, "failed": failed, "reason": row["error"]}


def _add_control(app: FastAPI, state: _State) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> Info:
        return info_of(state.reward, state.settings, state.about)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(_metrics(state.batcher))

    @app.post("/offload")
    async def offload() -> dict[str, str]:
        await asyncio.to_thread(state.batcher.offload)
        return {"status": "offloaded"}

    @app.post("/onload")
    async def onload() -> dict[str, str]:
        await asyncio.to_thread(state.batcher.onload)
        return {"status": "ok"}


async def _songs_of(
    request: Request, state: _State, folder: Path
) -> tuple[list[Named], list[Prompt]]:
    """Files, names and prompts of a multipart or a JSON request."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        # A long body is read beside the event loop, which answers others meanwhile.
        return await asyncio.to_thread(_songs_of_json, await request.body(), state, folder)
    most = 2 * (state.settings.songs + 1)
    async with request.form(max_files=most, max_fields=most) as form:
        files = [item for item in form.getlist("audio") if isinstance(item, UploadFile)]
        songs = [
            (write(folder, n, await file.read()), file.filename or f"song {n}")
            for n, file in enumerate(files)
        ]
        texts = {name: [str(text) for text in form.getlist(name)] for name in ("prompts", "lyrics")}
    if not songs:
        raise HTTPException(422, "no file under 'audio'")
    for name, given in texts.items():
        if given and len(given) != len(songs):
            raise HTTPException(422, f"{len(given)} {name} for {len(songs)} files")
    nothing = [None] * len(songs)
    return songs, prompts_of(texts["prompts"] or nothing, texts["lyrics"] or nothing)


def _songs_of_json(content: bytes, state: _State, folder: Path) -> tuple[list[Named], list[Prompt]]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is not JSON: {error}") from error
    body = ScoreRequest.model_validate(values)
    songs = [state.source(song, folder, n) for n, song in enumerate(body.songs)]
    return songs, [prompt_of(song.prompt, song.lyrics) for song in body.songs]


def _waveform_file(request: WaveformRequest, folder: Path) -> str:
    if request.protocol_version != "1":
        raise HTTPException(422, f"protocol {request.protocol_version!r}; this server speaks '1'")
    try:
        data = decoded(request.waveform_f32_base64)
    except ValueError as error:
        raise HTTPException(422, f"the request {error}") from error
    if len(data) != 4 * request.num_samples:
        raise HTTPException(
            422, f"{len(data)} bytes for {request.num_samples} samples of four bytes each"
        )
    path = folder / "waveform.wav"
    soundfile.write(path, np.frombuffer(data, "<f4"), request.sample_rate, "FLOAT")
    return str(path)


def info_of(reward: Reward, settings: ServeSettings, about: dict[str, Any]) -> Info:
    """The answer of `/info`."""
    return Info(
        heads=[
            HeadInfo(
                name=head.name,
                low=head.low if math.isfinite(head.low) else None,
                high=head.high if math.isfinite(head.high) else None,
            )
            for head in reward.heads
        ],
        mix=reward.mix.to_dict(),
        sample_rate=reward.sample_rate,
        reads_text=reward.model.reads_text,
        demonstration=reward.demonstration,
        models=about["models"],
        limits={
            "songs": settings.songs,
            "seconds": settings.limits.seconds,
            "body": settings.body,
            "queue": settings.limits.queue,
        },
        licences=reward.licences(),
    )


def _metrics(batcher: Batcher) -> str:
    """Prometheus' text form."""
    figures = batcher.figures
    values = {
        "songs_total": figures.songs,
        "songs_failed_total": figures.failed,
        "batches_total": figures.batches,
        "batch_size_max": figures.largest,
        "songs_waiting": batcher.waiting,
        "wait_seconds_total": figures.waited,
    }
    return "".join(f"apex_reward_{name} {value}\n" for name, value in values.items())
