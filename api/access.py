"""One log line and one measurement for each request."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

log = logging.getLogger(__name__)

UNMATCHED = "unmatched"
"""The path of all requests that no route took."""


class AccessLog:
    """ASGI middleware around everything that answers requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # of an exception that nobody handled

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, watched_send)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", UNMATCHED)
            metrics: Metrics = scope["app"].state.services.metrics
            metrics.observe(scope["method"], route, status, seconds)
            # without the query: what somebody searches for is theirs
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
            }
            log.log(logging.ERROR if status >= 500 else logging.INFO, "request", extra={"fields": fields})
