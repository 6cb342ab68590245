"""The HTTP application: `/score`, `/openrlhf`, `/verl-omni`, `/info`, `/health`, `/metrics`.

A bad song is a row with its reason; a bad request is a 4xx with one sentence. `/offload` frees the
device between training steps, and `/onload` takes it back.
"""

from __future__ import annotations

import asyncio
import base64
import json
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
from apex_reward.files.tables import json_ready
from apex_reward.prompt import Prompt, prompt_of, prompts_of
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row
from apex_reward.rewards.saved import provenance
from apex_reward.rewards.stacks.samples import path_in
from apex_reward.serve.batching import Batcher, BusyError, OnBatch
from apex_reward.serve.gate import Gate
from apex_reward.serve.schemas import OpenRLHFRequest, ScoreRequest, SongIn, WaveformRequest
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
    server = _Server(reward, settings, on_batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        # What was accepted is answered before the process ends.
        await asyncio.to_thread(server.batcher.close)

    app = FastAPI(title="apex_reward", lifespan=lifespan)
    app.state.batcher = server.batcher
    app.add_middleware(Gate, settings=settings)
    for error in (RequestValidationError, ValidationError):
        app.add_exception_handler(error, _invalid)
    app.add_exception_handler(StarletteHTTPException, _refused)
    taken: list[Any] = [server.score, server.openrlhf, server.verl_omni]
    for route in (*taken, server.offload, server.onload):
        app.post(f"/{route.__name__.replace('_', '-')}")(route)
    for route in (server.health, server.info, server.metrics):
        app.get(f"/{route.__name__}")(route)
    return app


async def _invalid(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)


async def _refused(request: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


class _Server:
    """The routes over one reward behind a batcher."""

    def __init__(self, reward: Reward, settings: ServeSettings, on_batch: OnBatch | None) -> None:
        self.reward, self.settings = reward, settings
        self.about = provenance(reward)
        self.batcher = Batcher(reward, settings, on_batch)

    async def score(self, request: Request) -> dict[str, Any]:
        """Rows as `score` writes them, in the order of the songs, and what made them."""
        with tempfile.TemporaryDirectory() as name:
            songs, prompts = await self._songs_of(request, Path(name))
            rows = await self._judge(songs, prompts)
        return {"rows": rows, "model": self.about}

    async def openrlhf(self, request: OpenRLHFRequest) -> dict[str, Any]:
        """Rewards of OpenRLHF's queries, and what they are made of."""
        lowest = self._floor()
        prompts = prompts_of(request.prompts or [None] * len(request.query))
        if len(prompts) != len(request.query):
            raise HTTPException(422, f"{len(prompts)} prompts for {len(request.query)} queries")
        with tempfile.TemporaryDirectory() as name:
            songs = [
                self._of_query(path_in(query, prompt) or query, Path(name), number)
                for number, (query, prompt) in enumerate(zip(request.query, prompts, strict=True))
            ]
            rows = await self._judge(songs, prompts)
        answers = [self._answer(row, lowest) for row in rows]
        rewards, errors = ([answer[name] for answer in answers] for name in ("score", "reason"))
        names = [*(head.name for head in self.reward.heads), "failed"]
        logs = {name: [float(answer[name]) for answer in answers] for name in names}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs, "errors": errors}

    async def verl_omni(self, request: WaveformRequest) -> dict[str, Any]:
        """The score of one song, by verl-omni's HTTP protocol 1."""
        lowest = self._floor()
        with tempfile.TemporaryDirectory() as name:
            songs = [(_waveform_file(request, Path(name)), "waveform")]
            (row,) = await self._judge(songs, [prompt_of(request.prompt)])
        return self._answer(row, lowest)

    async def health(self) -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    async def info(self) -> dict[str, Any]:
        """Models, heads (an end without bound is null), mix, loudness, limits and licences."""
        reward, settings = self.reward, self.settings
        limits = {"songs": settings.max_songs, "seconds": settings.max_seconds,
                  "body": settings.body, "queue": settings.max_queue}  # fmt: skip
        return {
            "heads": [json_ready(vars(head)) for head in reward.heads],
            "mix": reward.mix.to_dict(),
            "loudness": reward.loudness,
            "sample_rate": reward.sample_rate,
            "reads_text": reward.model.reads_text,
            "demonstration": reward.demonstration,
            "models": self.about["models"],
            "limits": limits,
            "licences": reward.licences(),
        }

    async def metrics(self) -> Response:
        """Counts in Prometheus' text form."""
        figures = self.batcher.figures
        values = {
            "songs_total": figures.songs,
            "songs_failed_total": figures.failed,
            "batches_total": figures.batches,
            "batch_size_max": figures.largest,
            "songs_waiting": self.batcher.waiting,
            "wait_seconds_total": figures.waited,
        }
        lines = [f"apex_reward_{name} {value}\n" for name, value in values.items()]
        return PlainTextResponse("".join(lines))

    async def offload(self) -> dict[str, str]:
        """Answer what was taken on, and move the models off the device."""
        await asyncio.to_thread(self.batcher.offload)
        return {"status": "offloaded"}

    async def onload(self) -> dict[str, str]:
        """Move the models back to the device."""
        await asyncio.to_thread(self.batcher.onload)
        return {"status": "ok"}

    async def _judge(self, songs: Sequence[Named], prompts: Sequence[Prompt]) -> list[Row]:
        """Rows of files, once the batch that they share with others is done."""
        if len(songs) > self.settings.max_songs:
            raise HTTPException(
                413, f"{len(songs)} songs; a request takes at most {self.settings.max_songs}"
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

    def _answer(self, row: Row, lowest: float) -> dict[str, Any]:
        """A row as a flat answer; heads are 0 where there is no score."""
        failed = row["error"] is not None
        heads = {head.name: 0.0 if failed else row[head.name] for head in self.reward.heads}
        flags, score = ";".join(row["flags"]), lowest if failed else row["reward"]
        return {"score": score, **heads, "flags": flags, "failed": failed, "reason": row["error"]}

    def _floor(self) -> float:
        """What a song that cannot be judged earns: less than any song of the mix."""
        try:
            return self.reward.floor
        except UsageError as error:
            raise HTTPException(422, f"this route cannot answer: {error}") from error

    async def _songs_of(
        self, request: Request, folder: Path
    ) -> tuple[Sequence[Named], Sequence[Prompt]]:
        """Files, names and prompts of a multipart or a JSON request."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            # A long body is read beside the event loop, which answers others meanwhile.
            return await asyncio.to_thread(self._of_json, await request.body(), folder)
        most = 2 * (self.settings.max_songs + 1)
        async with request.form(max_files=most, max_fields=most) as form:
            files = [item for item in form.getlist("audio") if isinstance(item, UploadFile)]
            songs = [
                (_write(folder, n, await file.read()), file.filename or f"song {n}")
                for n, file in enumerate(files)
            ]
            texts = [[str(text) for text in form.getlist(key)] for key in ("prompts", "lyrics")]
        if not songs:
            raise HTTPException(422, "no file under 'audio'")
        for name, given in zip(("prompts", "lyrics"), texts, strict=True):
            if given and len(given) != len(songs):
                raise HTTPException(422, f"{len(given)} {name} for {len(songs)} files")
        nothing = [None] * len(songs)
        return songs, prompts_of(texts[0] or nothing, texts[1] or nothing)

    def _of_json(self, content: bytes, folder: Path) -> tuple[list[Named], list[Prompt]]:
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise HTTPException(422, f"the body is not JSON: {error}") from error
        given = ScoreRequest.model_validate(values).songs
        songs = [self._of_song(song, folder, n) for n, song in enumerate(given)]
        return songs, [prompt_of(song.prompt, song.lyrics) for song in given]

    def _of_song(self, song: SongIn, folder: Path, number: int) -> Named:
        """The file and the name of one song of a JSON request."""
        if (song.audio is None) == (song.path is None):
            raise HTTPException(422, f"song {number}: give either 'audio' or 'path'")
        if song.path is not None:
            return self._below_root(song.path), song.path
        name = f"song {number}"
        try:
            return _write(folder, number, _decoded(song.audio or "")), name
        except ValueError as error:
            return NoSong(name, str(error)), name

    def _of_query(self, text: str, folder: Path, number: int) -> Named:
        """The song of an OpenRLHF query: base64 of a file where marked so, else a path.

        Text of a policy that is no path is a song that cannot be judged, not a bad request.
        """
        song = SongIn(audio=text) if text.startswith("data:") else SongIn(path=text)
        try:
            return self._of_song(song, folder, number)
        except HTTPException as error:
            if self.settings.audio_root is None:
                raise
            return NoSong(text, error.detail), text

    def _below_root(self, name: str) -> str:
        """A path below the audio root, links followed."""
        if self.settings.audio_root is None:
            raise HTTPException(403, "this server reads no paths; start it with --audio-root DIR")
        root = Path(self.settings.audio_root).resolve()
        try:
            path = (root / name).resolve()
        except (ValueError, OSError, RuntimeError) as error:
            raise HTTPException(422, f"{name[:80]!r} is no path: {error}") from error
        if not path.is_relative_to(root):
            raise HTTPException(403, f"{name[:80]!r} does not lie below the audio root")
        return str(path)


def _decoded(text: str) -> bytes:
    """Bytes of base64, also as a data URI.

    Line breaks, the URL alphabet and absent padding are read. ValueError for everything else.
    """
    plain = "".join(text.rpartition("base64,")[2].split()).translate(STANDARD).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"holds no base64 under 'audio': {error}") from error


def _write(folder: Path, number: int, data: bytes) -> str:
    """The bytes as a file that a decoding process can read."""
    path = folder / f"{number}.audio"
    path.write_bytes(data)
    return str(path)


def _waveform_file(request: WaveformRequest, folder: Path) -> str:
    if request.protocol_version != "1":
        raise HTTPException(422, f"protocol {request.protocol_version!r}; this server speaks '1'")
    try:
        data = _decoded(request.waveform_f32_base64)
    except ValueError as error:
        raise HTTPException(422, f"the request {error}") from error
    if len(data) != 4 * request.num_samples:
        raise HTTPException(
            422, f"{len(data)} bytes for {request.num_samples} samples of four bytes each"
        )
    path = folder / "waveform.wav"
    soundfile.write(path, np.frombuffer(data, "<f4"), request.sample_rate, "FLOAT")
    return str(path)
