"""Is it well? /health for machines that only ask that, /health/detailed for whoever wants to know more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread
from fastapi import APIRouter, Response
from pydantic import BaseModel

from .errors import DatabaseUnavailableError
from .services import Running, Services

log = logging.getLogger(__name__)
router = APIRouter(tags=["health"])

ANSWER_WITHIN_S = 2.0
T = TypeVar("T")

# Counting a million rows takes longer than a health check may; from there on the planner's estimate does.
DETAILS = """
SELECT pg_backend_pid() AS pid,
       CASE WHEN reltuples > 1000000 THEN reltuples::bigint
            ELSE (SELECT count(*) FROM memories) END AS memories
FROM pg_class WHERE oid = 'memories'::regclass
"""


class Health(BaseModel):
    """The short answer; ``reason`` only when unavailable."""

    status: str
    reason: str | None = None


class DatabaseHealth(BaseModel):
    """The numbers are those of this process' own pool, not of the server: lent now, and how many may be."""

    connected: bool
    active_connections: int
    max_connections: int


class PgBouncerHealth(BaseModel):
    """Whether this process reaches PostgreSQL through a pooler, and what that is concluded from."""

    available: bool
    note: str


class ProviderHealth(BaseModel):
    """``memories`` is exact up to a million and an estimate from there; null while the database is away."""

    name: str
    healthy: bool
    memories: int | None


class DetailedHealth(Health):
    """Durations in seconds (``_s``) and milliseconds (``_ms``).

    The percentiles are of the last 1000 requests, without those for health and metrics; null before the first.
    """

    uptime_s: float
    db: DatabaseHealth
    pgbouncer: PgBouncerHealth
    memory_provider: ProviderHealth
    latency_ms_p50: float | None
    latency_ms_p95: float | None


@router.get("/health", response_model_exclude_none=True, responses={503: {"model": Health}})
async def health(running: Running, response: Response) -> Health:
    """Answer 200 if the database answers, else 503."""
    try:
        await _in_probe_thread(running, lambda: running.probe.fetch("SELECT 1", timeout_s=ANSWER_WITHIN_S))
    except DatabaseUnavailableError as error:
        log.warning("unhealthy", extra={"fields": {"reason": str(error), "cause": error.cause}})
        response.status_code = 503
        return Health(status="unavailable", reason=str(error))
    return Health(status="ok")


@router.get("/health/detailed", responses={503: {"model": DetailedHealth}})
async def detailed_health(running: Running, response: Response) -> DetailedHealth:
    """Answer with everything that is known, 503 if the database does not answer."""
    memories: int | None = None
    reason: str | None = None
    try:
        pooler, memories = await _in_probe_thread(running, lambda: _ask(running))
    except DatabaseUnavailableError as error:
        log.warning("unhealthy", extra={"fields": {"reason": str(error), "cause": error.cause}})
        response.status_code = 503
        reason = str(error)
        pooler = PgBouncerHealth(available=False, note=f"not known: {reason}")
    connected = reason is None
    return DetailedHealth(
        status="ok" if connected else "unavailable",
        reason=reason,
        uptime_s=round(time.monotonic() - running.started, 3),
        db=DatabaseHealth(
            connected=connected,
            active_connections=running.database.active,
            max_connections=running.database.size,
        ),
        pgbouncer=pooler,
        memory_provider=ProviderHealth(name=running.settings.memory_provider, healthy=connected, memories=memories),
        latency_ms_p50=running.metrics.latency_ms(50),
        latency_ms_p95=running.metrics.latency_ms(95),
    )


def _ask(running: Services) -> tuple[PgBouncerHealth, int]:
    with running.probe.session(timeout_s=ANSWER_WITHIN_S) as session:
        row = session.fetch(DETAILS)[0]
        return _pooler(session.announced_pid, row["pid"]), row["memories"]


def _pooler(announced_pid: int, backend_pid: int) -> PgBouncerHealth:
    # Ports tell nothing: a published container port differs from the server's own as well. A pooler, though, can't
    # announce the server's process at login, as it chooses the server later: PgBouncer sends random bits.
    if announced_pid == backend_pid:
        return PgBouncerHealth(available=False, note="connected to PostgreSQL directly")
    note = "connected through a pooler: the server process is not the one announced at login"
    return PgBouncerHealth(available=True, note=note)


async def _in_probe_thread(running: Services, ask: Callable[[], T]) -> T:
    return await to_thread.run_sync(ask, limiter=running.probe_threads)
