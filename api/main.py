"""The application: ``uvicorn api.main:app``."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing

from anyio import CapacityLimiter
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import health, logs, memories, revisions
from .access import AccessLog
from .bodies import LimitedBodies
from .database import Database
from .errors import DatabaseUnavailableError, StartupError
from .hosts import KnownHosts
from .metrics import CONTENT_TYPE, Metrics
from .services import Running, Services
from .settings import hosts_from, settings_from

log = logging.getLogger(__name__)

POOL_SIZE = 8
"""Connections of a worker, besides that for health checks: two workers fit into PgBouncer's pool of 20."""
TIMEOUT_S = 10.0
"""How long a request waits for the database altogether."""


def create_app(environ: Mapping[str, str] = os.environ) -> FastAPI:
    """The application, which reads ``environ`` when it starts, but for the hosts that it answers to."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started = time.monotonic()
        settings = settings_from(environ)
        logs.set_level(settings.log_level)
        url = settings.database_url
        with (
            closing(Database(url, size=1, timeout_s=TIMEOUT_S)) as probe,
            closing(Database(url, size=POOL_SIZE, timeout_s=TIMEOUT_S)) as database,
        ):
            try:
                revisions.migrate(probe, url)
            except DatabaseUnavailableError as error:
                raise StartupError(f"{error}: {error.cause}" if error.cause else str(error)) from error
            app.state.services = Services(settings, Metrics(database), database, probe, CapacityLimiter(4), started)
            yield

    app = FastAPI(title="nv-api", summary="A small memory service.", version="0.1.0", lifespan=lifespan)
    app.add_middleware(LimitedBodies)
    app.add_middleware(KnownHosts, names=hosts_from(environ))
    app.add_middleware(AccessLog)
    app.add_middleware(OneLineStartupErrors)
    app.add_exception_handler(DatabaseUnavailableError, _unavailable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.include_router(health.router)
    app.include_router(memories.router)
    app.add_api_route("/metrics", _metrics, include_in_schema=False)
    return app


class OneLineStartupErrors:
    """ASGI middleware that reports a :class:`StartupError` without its traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []

        async def hold_failure(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                held.append(message)  # starlette puts the traceback in, before it raises what we want to see
            else:
                await send(message)

        try:
            await self._app(scope, receive, hold_failure)
        except StartupError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        except BaseException:
            for message in held:
                await send(message)
            raise


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    log.warning("unavailable", extra={"fields": {"reason": str(error), "cause": getattr(error, "cause", "")}})
    return JSONResponse({"detail": str(error)}, status_code=503)


async def _invalid(_: Request, error: Exception) -> Response:
    """What is wrong and where, in FastAPI's own form but for the input: that may be long, private, or no text."""
    assert isinstance(error, RequestValidationError)
    detail = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
    # not JSONResponse, which can't write the name of a field that is half a surrogate pair
    return Response(json.dumps({"detail": detail}), status_code=422, media_type="application/json")


async def _metrics(running: Running) -> Response:
    """Answer with the measurements of this process, for Prometheus."""
    return Response(running.metrics.render(), media_type=CONTENT_TYPE)


logs.configure()  # here already: uvicorn writes its first lines before the application starts
app = create_app()
