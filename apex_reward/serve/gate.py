"""Checks of a request before its body reaches the application: token, length, encoding, time."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apex_reward.serve.settings import ServeSettings

OPEN_PATHS = ("/health",)
BODIES = 4


class _Refused(Exception):  # noqa: N818
    def __init__(self, code: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.answer = JSONResponse({"error": text}, code, headers)


class Gate:
    """ASGI middleware: bearer token, length, encoding and arrival of a body.

    A body is read whole before the application sees it, so that a slow sender holds nothing but
    its bytes, and a connection that is cut ends without a trace.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings, self.token = app, settings, settings.token()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = 0
        try:
            size = self._checked(scope, Headers(scope=scope))
            self._held += size
            body = await self._body(receive, size) if size else b""
            if body is not None:
                await self.app(scope, _replayed(body, receive), send)
        except _Refused as refused:
            await refused.answer(scope, receive, send)
        finally:
            self._held -= size

    def _checked(self, scope: Scope, headers: Headers) -> int:
        """The announced bytes of an acceptable request."""
        if self.token is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise _Refused(401, "wrong or missing bearer token")
        if scope["method"] != "POST":
            return 0
        if headers.get("content-encoding", "identity") != "identity":
            raise _Refused(415, "send the body as it is, without a content-encoding")
        length, most = headers.get("content-length", ""), self.settings.body
        if not (length.isascii() and length.isdigit()):
            raise _Refused(411, "the request has no content-length")
        if len(length) > 18 or int(length) > most:
            raise _Refused(413, f"{length[:18]} bytes; a request takes at most {most}")
        if self._held + int(length) > BODIES * most:
            raise _Refused(503, "busy: other requests are arriving", **{"Retry-After": "1"})
        return int(length)

    async def _body(self, receive: Receive, size: int) -> bytes | None:
        """The whole body; None where the client went away."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while len(body) < size:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            seconds = self.settings.body_seconds
            raise _Refused(
                408, f"the body did not arrive within {seconds:g} s", connection="close"
            ) from None
        if len(body) != size:
            raise _Refused(400, f"{len(body)} bytes arrived of the {size} announced")
        return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body first, then what else comes (the client's leaving)."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return first.pop() if first else await receive()

    return replay
