"""`RemoteReward`: a served reward as a `RewardModel`; not differentiable.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import soundfile
from torch import Tensor

from apex_reward.errors import ApexError, AudioError, UsageError
from apex_reward.model.encode import Prompts
from apex_reward.model.source import Source
from apex_reward.rewards.foreign.called import CalledModel
from apex_reward.scores.head import Head

TEMPORARY = (408, 429, 500, 502, 503, 504)
TRIES = 5
BATCH = 16


class ServerError(ApexError):
    """A server that cannot be reached, or whose answer does not follow the protocol."""


class RemoteReward(CalledModel):
    """A served reward behind the interface of a reward model.

    Its heads are the server's, at the server's loudness; a `Reward` without a mix takes the
    server's. Songs travel as FLAC of 24 bits (as float WAV where they go beyond full scale). It
    fails closed: another number of rows, a value that is not a finite number and an error of the
    server each raise.

    Args:
        servers: `http://host:port`, or several that are asked in turn.
        token: bearer token.
        timeout: seconds for one request.

    Raises:
        ServerError: no answer, or not a reward server.
    """

    name = "remote"
    own_rate = True

    def __init__(
        self, servers: str | Sequence[str], token: str | None = None, timeout: float = 120.0
    ) -> None:
        urls = [servers] if isinstance(servers, str) else list(servers)
        if len(urls) == 1:
            self.source = Source(urls[0])
        self._urls, self._turn = [url.rstrip("/") for url in urls], cycle(range(len(urls)))
        self._token, self._timeout = token, timeout
        info = self._ask("/info", None)
        try:
            heads = info["heads"]
            self.heads = tuple(Head.of(one["name"], one["low"], one["high"]) for one in heads)
            self.sample_rate, self.reads_text = int(info["sample_rate"]), bool(info["reads_text"])
            self.saved_mix: Mapping[str, Any] = info["mix"]
            self.licences = tuple(info.get("licences") or ())
            # What its numbers depend on: another server may stand at the same address later.
            self.served = [info.get("models"), info.get("loudness")]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{urls[0]} is no reward server: /info lacks {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._turn = cycle(range(len(self._urls)))

    def score_songs(
        self, songs: Sequence[Tensor], sample_rate: int, prompts: Prompts
    ) -> list[list[float]]:
        """The server's scores of mono songs (T,).

        Raises:
            UsageError: a request that the server refuses.
            AudioError: songs that the server cannot score.
            ServerError: no whole answer after some tries, or one that is not a row of finite
                numbers per song.
        """
        sent: list[dict[str, Any]] = [{"audio": encoded(song, sample_rate)} for song in songs]
        for song, prompt in zip(sent, prompts or (), strict=False):
            song |= {"prompt": str(prompt), "lyrics": prompt.lyrics}
        rows: list[dict[str, Any]] = []
        for start in range(0, len(sent), BATCH):
            part = sent[start : start + BATCH]
            answer: Any = self._ask("/score", {"songs": part}).get("rows")
            whole = isinstance(answer, list) and len(answer) == len(part)
            if not whole or not all(isinstance(row, dict) for row in answer):
                raise ServerError(f"{self._urls[0]} answered no row for each of {len(part)} songs")
            rows += answer
        if failed := [f"song {n} {row['error']}" for n, row in enumerate(rows) if row.get("error")]:
            raise AudioError("; ".join(failed))
        values: list[list[Any]] = [[row.get(head.name) for head in self.heads] for row in rows]
        numbers = [value for row in values for value in row]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
            raise ServerError(f"{self._urls[0]} answered scores that are not finite numbers")
        return values

    def _ask(self, route: str, body: Any) -> dict[str, Any]:
        """A request to the servers in turn, repeated a few times on errors that may pass."""
        reason = ""
        for attempt in range(TRIES):
            url = self._urls[next(self._turn)] + route
            try:
                return self._once(url, body)
            except urllib.error.HTTPError as error:
                reason = _reason(error)
                if error.code not in TEMPORARY:
                    raise UsageError(f"{url} refused: {reason}") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                reason = str(getattr(error, "reason", error))
            except HTTPException as error:  # an answer that ends in the middle, say
                reason = f"the answer is not whole ({type(error).__name__}: {error})"
            except ValueError as error:
                raise ServerError(f"{url} answered no JSON: {error}") from error
            if attempt + 1 < TRIES:
                time.sleep(min(0.1 * 2**attempt, 2.0))
        raise ServerError(f"{self._urls[0]} gives no answer after {TRIES} tries: {reason}")

    def _once(self, url: str, body: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)
        # A proxy does not reach the loopback address of this machine.
        direct = [urllib.request.ProxyHandler({})] if _is_loopback(url) else []
        opener = urllib.request.build_opener(*direct)
        with opener.open(request, timeout=self._timeout) as answer:
            content = json.loads(answer.read())
        if not isinstance(content, dict):
            raise ValueError("expected an object")
        return content


def encoded(song: Tensor, sample_rate: int) -> str:
    """A mono song (T,) as base64 of a FLAC file, or of a float WAV where FLAC would clip it."""
    samples = song.detach().float().cpu().numpy()
    buffer = io.BytesIO()
    if np.abs(samples).max(initial=0.0) < 1.0:
        soundfile.write(buffer, samples, sample_rate, "PCM_24", format="FLAC")
    else:
        soundfile.write(buffer, samples, sample_rate, "FLOAT", format="WAV")
    return base64.b64encode(buffer.getvalue()).decode()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return f"{error.code} {json.loads(error.read())['error']}"
    except (ValueError, KeyError, TypeError, HTTPException):
        return f"{error.code} {error.reason}"
