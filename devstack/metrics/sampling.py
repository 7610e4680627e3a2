"""Samples: what all services count, read at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from devstack.errors import StackError
from devstack.metrics import application
from devstack.runtimes import ServiceState, Usage
from devstack.services import NotReady
from devstack.services.api import Api
from devstack.services.pgbouncer import PgBouncer
from devstack.services.postgres import MAINTENANCE, Postgres
from devstack.services.statistics import pool, read_statements, traffic, why_no_statements
from devstack.stack import Stack
from devstack.threads import run_at_once

PATIENCE = 3.0
"""Seconds that a service may take to give its figures."""


class DatabaseSample(Struct, frozen=True):
    """Counters since PostgreSQL's statistics were reset, and gauges."""

    counters: Mapping[str, int]
    connections: int
    active: int
    max_connections: int
    size: int
    statements: list[dict[str, Any]]
    statements_missing: str


class PoolerSample(Struct, frozen=True):
    """Rows of SHOW STATS and SHOW POOLS, PgBouncer's own database left out."""

    traffic: list[dict[str, Any]]
    pools: list[dict[str, Any]]


class Sample(Struct, frozen=True):
    """One look at everything. What could not be read has a reason in ``missing``, by the service's label."""

    at: Mapping[str, float]
    """When each part was read, by label, on the monotonic clock."""
    states: Mapping[str, ServiceState]
    usage: Mapping[str, Usage]
    api: application.Exposition | None
    db: DatabaseSample | None
    pgb: PoolerSample | None
    missing: Mapping[str, str]

    @property
    def empty(self) -> bool:
        """Whether nothing could be read."""
        return self.states.keys() <= self.missing.keys()


def take(stack: Stack) -> Sample:
    """Read every service that runs, all of them at once.

    :raises StackError: the runtime can't say what runs.
    """
    states = stack.context.states(stack.names)
    jobs: dict[str, Callable[[], Any]] = {
        "db": lambda: sample_database(stack.db),
        "pgb": lambda: sample_pooler(stack.pgb),
        "api": lambda: sample_application(stack.api),
    }
    up = {label: job for label, job in jobs.items() if states[stack.service(label).name].running}
    answers = _at_once({**up, "usage": lambda: stack.context.usage(states)})
    found = {label: answer for label, (_, answer) in answers.items() if not isinstance(answer, NotReady)}
    missing = {label: str(answer) for label, (_, answer) in answers.items() if isinstance(answer, NotReady)}
    for label in missing.keys() & up.keys():
        if why := stack.why_frozen(states[stack.service(label).name]):
            missing[label] = f"{missing[label].splitlines()[0]}; {why}; inv dev.heal resumes it"
    for label in jobs.keys() - up.keys():
        missing[label] = states[stack.service(label).name].status
    return Sample(
        at={label: at for label, (at, _) in answers.items()},
        states={label: states[stack.service(label).name] for label in jobs},
        usage={label: use for label in jobs if (use := found.get("usage", {}).get(stack.service(label).name))},
        api=found.get("api"),
        db=found.get("db"),
        pgb=found.get("pgb"),
        missing={label: stack.context.mask(reason.splitlines()[0]) for label, reason in missing.items()},
    )


def _at_once(jobs: Mapping[str, Callable[[], Any]]) -> dict[str, tuple[float, Any]]:
    """What each job gave and when, or the NotReady that says why not. One that does not end is left behind."""
    answers: dict[str, tuple[float, Any]] = {}

    def run(label: str, job: Callable[[], Any]) -> None:
        try:
            answer = job()
        except Exception as error:
            answer = error
        answers[label] = (time.monotonic(), answer)

    deadline = time.monotonic() + PATIENCE
    run_at_once([functools.partial(run, *job) for job in jobs.items()], PATIENCE)
    late = (deadline, NotReady(f"no answer within {PATIENCE:g} s"))
    given = {label: answers.get(label, late) for label in jobs}
    for _, answer in given.values():
        if isinstance(answer, Exception) and not isinstance(answer, NotReady):
            raise answer
    return given


def sample_application(api: Api) -> application.Exposition:
    """What the application exposes, which may be nothing.

    :raises NotReady: it does not answer.
    """
    path = api.settings.api.metrics_path
    if not path:
        return application.Exposition(missing="it has no metrics (api.metrics_path is empty)")
    try:
        status, body = api.get(path, seconds=PATIENCE)
    except OSError as error:
        raise NotReady(str(error) or type(error).__name__) from None
    if status != 200:
        return application.Exposition(missing=f"{path} answered {status}; set api.metrics_path, empty if there is none")
    probes = {path, "/metrics", api.settings.api.health_path, "/health", "/health/detailed"}
    try:
        return application.parse(body.decode(errors="replace"), probes)
    except ValueError as error:
        return application.Exposition(missing=f"{path} is not in Prometheus' text format: {error}")


COUNTERS = """
SELECT xact_commit AS commits, xact_rollback AS rollbacks, blks_hit AS blocks_hit, blks_read AS blocks_read,
       tup_returned AS rows_read, tup_inserted + tup_updated + tup_deleted AS rows_written,
       temp_bytes, deadlocks
  FROM pg_stat_database WHERE datname = %s
"""
"""https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-VIEW"""

GAUGES = """
SELECT count(*), count(*) FILTER (WHERE state = 'active'), current_setting('max_connections')::int,
       (SELECT pg_database_size(datname) FROM pg_database WHERE datname = %s)
  FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def sample_database(db: Postgres) -> DatabaseSample:
    """The counters of the application's database, read from another one: what asks is not counted among them.

    :raises NotReady: it does not answer.
    """
    import psycopg2
    import psycopg2.extras

    name = db.settings.db.name
    try:
        connection = db.connect(database=MAINTENANCE, seconds=int(PATIENCE))
        try:
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute(COUNTERS, (name,))
                counters = cursor.fetchone()
            with connection.cursor() as cursor:
                cursor.execute(GAUGES, (name,))
                connections, active, maximum, size = cursor.fetchone() or (0, 0, 0, None)
            if counters is None or size is None:
                raise NotReady(f"there is no database {name}")
            statements: list[dict[str, Any]] = []
            why = ""
            try:
                statements = read_statements(db, connection)
            except psycopg2.Error as error:
                why = why_no_statements(db, error)
        finally:
            connection.close()
    except StackError as error:
        raise NotReady(f"{error.what}: {error.why}") from None
    except psycopg2.Error as error:
        raise NotReady(str(error).strip() or type(error).__name__) from None
    return DatabaseSample(dict(counters), connections, active, maximum, size, statements, why)


def sample_pooler(pgb: PgBouncer) -> PoolerSample:
    """PgBouncer's own counters.

    :raises NotReady: the admin console does not answer.
    """
    import psycopg2

    try:
        stats, pools, databases = pgb.show_all("STATS", "POOLS", "DATABASES", seconds=int(PATIENCE))
    except StackError as error:
        raise NotReady(error.why or error.what) from None
    except psycopg2.Error as error:
        raise NotReady(str(error).strip() or type(error).__name__) from None
    sizes = {row["name"]: row["pool_size"] for row in databases}
    own = "pgbouncer"
    return PoolerSample(
        [traffic(row) for row in stats if row["database"] != own],
        [pool(row, sizes.get(row["database"])) for row in pools if row["database"] != own],
    )
