"""How large a request's body may be: the application would read any into memory."""

from __future__ import annotations

import contextlib

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BYTES = 1_000_000


class _TooLarge(Exception):
    """More was sent than is read."""


class LimitedBodies:
    """ASGI middleware that answers 413 to a request whose body is larger than :data:`MAX_BYTES`, whether or not the
    request says so (https://www.rfc-editor.org/rfc/rfc9110#name-413-content-too-large)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > MAX_BYTES:
            await _refuse(scope, receive, send)
            return
        read = 0

        async def receive_some() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BYTES:
                raise _TooLarge
            return message

        async def send_own(message: Message) -> None:
            if read <= MAX_BYTES:  # what the application makes of the error is none of its answers
                await send(message)

        with contextlib.suppress(_TooLarge):
            await self._app(scope, receive_some, send_own)
        if read > MAX_BYTES:
            await _refuse(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    refusal = PlainTextResponse(f"a body has at most {MAX_BYTES} bytes here\n", status_code=413)
    await refusal(scope, receive, send)
