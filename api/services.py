"""What a running application holds, and how a route gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from .database import Database
from .metrics import Metrics
from .settings import Settings


@dataclass(frozen=True)
class Services:
    """Made at start, gone at shutdown."""

    settings: Settings
    metrics: Metrics
    database: Database
    probe: Database
    """A connection apart for health checks: being busy is not being ill."""
    probe_threads: CapacityLimiter
    """Threads apart as well: while the database hangs, requests occupy all of the others."""
    started: float
    """On the monotonic clock, in seconds."""


# async, or FastAPI would send it through a thread
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Running = Annotated[Services, Depends(_services)]
"""The type of a route's parameter that takes the services."""
