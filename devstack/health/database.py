"""The database's health: can one log in and query, and is there room for more."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from devstack import console
from devstack.data import kept
from devstack.data.journal import holds_clients, is_abandoned, restoring
from devstack.data.schedule import overdue
from devstack.errors import StackError
from devstack.health.findings import Findings, Probe, fastest
from devstack.health.records import Check, slow
from devstack.services.postgres import WAL_ROOM, Postgres
from devstack.shell import typed
from devstack.stack import Stack

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

ACTIVITY = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('max_connections')::int AS max_connections,
       pg_database_size(current_database()) AS size_bytes
"""

TRANSACTION = """
SELECT pid, usename AS role, coalesce(nullif(application_name, ''), 'unknown') AS application, state,
       extract(epoch FROM clock_timestamp() - xact_start)::float AS seconds
  FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
 ORDER BY xact_start LIMIT 1
"""

LOCK = """
SELECT pid, (pg_blocking_pids(pid))[1] AS blocker,
       extract(epoch FROM clock_timestamp() - state_change)::float AS seconds
  FROM pg_stat_activity
 WHERE wait_event_type = 'Lock' AND cardinality(pg_blocking_pids(pid)) > 0
 ORDER BY state_change LIMIT 1
"""
"""https://www.postgresql.org/docs/current/functions-info.html, pg_blocking_pids"""

EXTENSIONS = """
SELECT name, (SELECT extversion FROM pg_extension WHERE extname = name) AS version FROM unnest(%s::text[]) AS name
"""

HOLDERS = """
SELECT count(*) || ' ' || coalesce(state, 'starting') || ' of ' || coalesce(nullif(application_name, ''), usename)
  FROM pg_stat_activity WHERE backend_type = 'client backend'
 GROUP BY state, coalesce(nullif(application_name, ''), usename) ORDER BY count(*) DESC LIMIT 3
"""


ENGINE_MARGIN = 0.5
"""Seconds that a container engine's answer must come before the probes' deadline, to be read in time."""


def probe_database(db: Postgres) -> Probe:
    """Log in as the application's role, query, and look at what may run out."""

    def probe(findings: Findings) -> None:
        import psycopg2

        try:
            with findings.waiting_for(f"its login at {db.address}"):
                connection = db.connect(seconds=2)
        except StackError as error:
            findings.add(_unproven(db, error))
            return
        except psycopg2.OperationalError as error:
            findings.add(refused(db, db.context.mask(str(error).strip())))
            return
        findings.add(Check(name="login", text=f"lets {db.settings.db.user} in"))
        try:
            _query(db, connection, findings)
        except psycopg2.Error as error:
            findings.add(
                Check(
                    name="query",
                    verdict="unhealthy",
                    cause=f"a query failed: {str(error).strip().splitlines()[0]}",
                    fix="inv db.logs",
                )
            )
        finally:
            connection.close()

    return probe


def _unproven(db: Postgres, error: StackError) -> Check:
    return Check(
        name="login",
        verdict="unhealthy",
        cause=db.context.mask(f"{error.what}: {error.why}"),
        fix="; ".join(error.fix),
    )


def refused(db: Postgres, error: str) -> Check:
    """Why a login failed, from libpq's words."""
    s = db.settings.db

    def check(cause: str, fix: str, **kwargs: Any) -> Check:
        return Check(name="login", verdict="unhealthy", cause=cause, fix=fix, **kwargs)

    if "password authentication failed" in error:
        cause = f"it refuses {s.user}: the role has another password than the settings"
        return check(cause, "inv db.start sets the role's password", remedy="settle")
    if "does not exist" in error:
        return check(
            f"there is no database {s.name}",
            "inv data.restore brings back a backup, inv db.start makes an empty one",
        )
    if "slots are reserved" in error or "too many clients" in error:
        return check(
            f"all its connections are taken ({_holders(db) or f'db.max_connections is {s.max_connections}'})",
            "inv db.stats shows by whom: end those, or raise db.max_connections",
        )
    if "pg_hba.conf" in error:
        return check(
            f"its pg_hba.conf does not let {s.user} in: {' '.join(error.split())}",
            "inv db.start renders it again",
            remedy="start",
        )
    if "Permission denied" in error:
        return check(f"it may not read its own data: {' '.join(error.split())}", db.take_back_data())
    if "starting up" in error or "recovery" in error or "not yet accepting" in error:
        return check("it is recovering after a crash", "wait for it: inv health --wait 60")
    if "shutting down" in error:
        return check("it is shutting down", "wait for it, then inv db.start", remedy="start")
    if "Connection refused" in error:
        return check(f"nothing listens on port {db.port}, though it runs", "inv db.start", remedy="start")
    if "timeout expired" in error:
        return check(f"it takes connections at {db.address} and says nothing", "inv db.logs")
    return check(" ".join(error.split()), "inv db.logs")


def _holders(db: Postgres) -> str:
    """Who has the connections, asked as the superuser, for whom some are reserved."""
    answer = db.context.read(db.ask("postgres", HOLDERS))
    return ", ".join(answer.stdout.splitlines()) if answer.ok else ""


def _query(db: Postgres, connection: Connection, findings: Findings) -> None:
    limits = db.settings.health
    with connection.cursor() as cursor, findings.waiting_for("the answer to SELECT 1"):

        def ask() -> None:
            cursor.execute("SELECT 1")
            cursor.fetchall()

        _, ms = fastest(ask, limits.query_ms, limits.timeout / 2)
    findings.add(
        Check(
            name="query",
            text=f"answers a query in {ms:.1f} ms",
            value=round(ms, 2),
            unit="ms",
            limit=limits.query_ms,
            **slow(ms > limits.query_ms, f"SELECT 1 took {ms:.0f} ms", "inv metrics shows what keeps it busy"),
        )
    )
    with connection.cursor() as cursor, findings.waiting_for("its statistics"):
        cursor.execute("SET statement_timeout = '2s'")
        cursor.execute(EXTENSIONS, (db.settings.db.extensions,))
        for name, version in cursor.fetchall():
            findings.add(_extension(db, name, version))
        cursor.execute(ACTIVITY)
        ((active, most, size),) = cursor.fetchall()
        findings.add(_connections(limits.connections_percent, active, most))
        findings.add(Check(name="size", text=f"{console.size(size)} of data", value=size, unit="bytes"))
        cursor.execute(kept.DATABASES)
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        findings.extend(_left_over(kept.judged(db.context.paths, kept.databases(db, rows))))
        cursor.execute(TRANSACTION)
        findings.add(_transaction(limits.transaction_seconds, cursor.fetchone()))
        cursor.execute(LOCK)
        findings.add(_lock(limits.lock_seconds, cursor.fetchone()))


def _extension(db: Postgres, name: str, version: str | None) -> Check:
    if version:
        return Check(name=f"extension {name}", text=version, value=version)
    return Check(
        name=f"extension {name}",
        verdict="unhealthy",
        cause=f"extension {name} is missing in database {db.settings.db.name}",
        fix="inv dev.heal creates it",
        remedy="settle",
    )


def _left_over(copies: list[kept.Kept]) -> list[Check]:
    """Return what to say of kept copies that nothing needs any more."""
    copies = [copy for copy in copies if copy.is_left_over]
    if not copies:
        return []
    size = sum(copy.bytes or 0 for copy in copies)
    return [
        Check(
            name="kept",
            verdict="degraded",
            value=size,
            unit="bytes",
            cause=f"{', '.join(copy.name for copy in copies)}, kept by an earlier restore, takes {console.size(size)}"
            " and is no longer needed",
            fix="inv data.cleanup removes it, or says why it can't; inv data.list --kept shows it",
        )
    ]


def _connections(percent: int, active: int, most: int) -> Check:
    return Check(
        name="connections",
        text=f"{active} of {most} connections",
        value=active,
        unit="count",
        limit=most * percent / 100,
        **slow(
            active > most * percent / 100,
            f"{active} of its {most} connections are taken",
            "inv db.stats shows by whom; db.max_connections raises the limit",
        ),
    )


def _number(pid: object) -> int:
    """Return a pid for a command to type; 0 for a text, which only a view of the application's can have given."""
    return pid if isinstance(pid, int) else 0


def _transaction(seconds: float, row: tuple[Any, ...] | None) -> Check:
    if row is None:
        return Check(name="transactions", text="no transaction is open", value=0, unit="s", limit=seconds)
    pid, role, application, state, age = row
    return Check(
        name="transactions",
        text=f"the oldest transaction is open for {console.duration(age)}",
        value=round(age, 1),
        unit="s",
        limit=seconds,
        **slow(
            age > seconds,
            f"a transaction of {role} ({application}, pid {pid}, {state}) is open for {console.duration(age)}",
            f'commit it there, or end it: inv db.shell --command "SELECT pg_terminate_backend({_number(pid)})"',
        ),
    )


def _lock(seconds: float, row: tuple[Any, ...] | None) -> Check:
    if row is None:
        return Check(name="locks", text="nobody waits for a lock", value=0, unit="s", limit=seconds)
    pid, blocker, age = row
    command = f'inv db.shell --command "SELECT pg_terminate_backend({_number(blocker)})"'
    return Check(
        name="locks",
        text=f"pid {pid} waits for a lock of pid {blocker} for {console.duration(age)}",
        value=round(age, 1),
        unit="s",
        limit=seconds,
        **slow(
            age > seconds,
            f"pid {pid} has waited {console.duration(age)} for a lock that pid {blocker} holds",
            f"inv db.stats shows both; end one: {command}",
        ),
    )


def _moved_away(db: Postgres, pid: int) -> list[Check]:
    """A server goes on in the folder that it was started in, wherever that has gone; the next start would not."""
    cause, fix = f"the folder of its data is not at {db.data} any more", "put it back before anything is restarted"
    import psutil

    with contextlib.suppress(psutil.Error):
        now = Path(psutil.Process(pid).cwd())
        if now.is_dir():
            cause = f"{cause}: it is {now} now"
            fix = f"before anything is restarted: mv {typed(now, db.data)}"
        elif str(now).endswith(" (deleted)"):
            cause, fix = f"the folder of its data was deleted: {db.data}", "inv data.restore brings back a backup"
    return [Check(name="data", verdict="unhealthy", cause=cause, fix=fix)]


def probe_data(stack: Stack) -> Probe:
    """What is being done to the data, and whether they are backed up as often as the schedule says."""

    def probe(findings: Findings) -> None:
        if doing := restoring(stack.paths):
            findings.add(_restore(stack, doing))
        if late := overdue(stack):
            fix = "inv data.backup; inv data.schedule --status says how the last run ended"
            findings.add(Check(name="backups", verdict="degraded", cause=late, fix=fix))
        # in the volume of a container engine they are not looked for: that takes a command of the engine's each time
        if not stack.context.runtime.contained and not stack.paths.swap.exists():
            found = kept.judged(stack.paths, kept.directories(stack.db))
            copies = [copy for copy in found if copy.is_left_over]
            sizes = [replace(copy, bytes=stack.db.folders.size(copy.name)) for copy in copies]
            findings.extend(_left_over(sizes))

    return probe


def _restore(stack: Stack, doing: str) -> Check:
    """Judge what is being done to the database, or was cut off."""
    if not is_abandoned(stack.paths):
        return Check(name="restore", verdict="degraded", cause=doing, fix="wait for it: inv health --wait 600")
    return Check(
        name="restore",
        verdict="unhealthy" if holds_clients(stack.paths) else "degraded",
        cause=doing,
        fix="inv dev.heal finishes or undoes it; so do inv dev.up and inv data.list",
        remedy="recover",
    )


def probe_disk(db: Postgres, pid: int) -> Probe:
    """The room on the disk of the data, and whether they are there; ``pid`` is the server's, 0 if it does not run."""

    contained = db.context.runtime.contained

    def probe(findings: Findings) -> None:
        with contextlib.nullcontext() if contained else findings.waiting_for(f"the disk of {db.place}"):
            room = db.room(db.settings.health.timeout - ENGINE_MARGIN)
        if room is None and contained:
            # a slow engine is no fault of the database
            findings.add(
                Check(name="disk", text="room on its disk not known: the container engine did not say in time")
            )
            return
        if room is None:
            findings.extend(_moved_away(db, pid) if pid else [])
            return
        free, total = room
        wanted = max(WAL_ROOM, min(db.settings.health.disk_free_mb * 1_000_000, total // 10))
        text = f"{console.size(free)} of {console.size(total)} free"
        verdict, cause = ("unhealthy", "is full") if free < WAL_ROOM else ("degraded", "is nearly full")
        cause = f"the disk of its data {cause}: {text}"
        wrong = {"verdict": verdict, "cause": cause, "fix": f"make room at {db.place}"}
        findings.add(
            Check(
                name="disk",
                text=text,
                value=free,
                unit="bytes",
                limit=wanted,
                **(wrong if free < wanted else {}),  # type: ignore[arg-type]
            )
        )

    return probe
