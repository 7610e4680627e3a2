"""The figures of a reading.

The unit of a figure is the end of its name, as in the JSON of ``inv metrics``: ``_bytes``, ``_s``, ``_ms``, ``_per_s``,
``_ratio`` (0 to 1). None: unknown, or nothing happened that it could be taken from.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class ServiceReading(Struct, frozen=True):
    """What a service uses. ``cpu_ratio`` is 1 for one whole core."""

    service: str
    state: str
    up: bool
    """Whether it runs and gave its figures, if it has any."""
    reason: str
    """Why there are no figures of it."""
    uptime_s: int | None
    cpu_ratio: float | None
    memory_bytes: int | None
    processes: int | None


class ApiFigures(Struct, frozen=True):
    """Requests in some time. Times are those that so many per cent of them took at most."""

    requests: int
    requests_per_s: float | None
    errors_4xx: int
    errors_5xx: int
    errors_4xx_ratio: float | None
    errors_5xx_ratio: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class ApiReading(Struct, frozen=True):
    now: ApiFigures | None
    total: ApiFigures | None
    in_progress: int | None
    pool_active: int | None
    pool_idle: int | None
    pool_max: int | None
    missing: str
    """Why there are no figures of an application that runs."""


class PostgresFigures(Struct, frozen=True):
    """What the application's database did in some time."""

    transactions: int
    transactions_per_s: float | None
    rollbacks: int
    rollback_ratio: float | None
    cache_hit_ratio: float | None
    rows_read: int
    rows_written: int
    temp_bytes: int
    deadlocks: int


class PostgresReading(Struct, frozen=True):
    now: PostgresFigures | None
    total: PostgresFigures | None
    size_bytes: int | None
    connections: int | None
    connections_active: int | None
    max_connections: int | None
    statements: list[dict[str, Any]]
    statements_missing: str


class PgBouncerFigures(Struct, frozen=True):
    """What passed through the pools in some time. ``query_ms`` is a query's mean, ``wait_ms`` the mean time that a
    transaction waited for a server connection."""

    transactions: int
    queries: int
    queries_per_s: float | None
    received_bytes: int
    received_bytes_per_s: float | None
    sent_bytes: int
    sent_bytes_per_s: float | None
    query_ms: float | None
    wait_ms: float | None


class PgBouncerReading(Struct, frozen=True):
    now: PgBouncerFigures | None
    total: PgBouncerFigures | None
    clients_active: int | None
    clients_waiting: int | None
    longest_wait_s: float | None
    servers: int | None
    servers_active: int | None
    pool_size: int | None


class Reading(Struct, frozen=True):
    """All figures of one moment."""

    time: str
    """In UTC, ISO 8601."""
    interval_s: float | None
    """The time that ``now`` is about."""
    services: list[ServiceReading]
    api: ApiReading
    postgres: PostgresReading
    pgbouncer: PgBouncerReading

    @property
    def empty(self) -> bool:
        """Whether nothing could be read."""
        return not any(service.up for service in self.services)
