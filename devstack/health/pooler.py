"""PgBouncer's health: its configuration, its credentials, its pools, and the way through it to the database."""

from __future__ import annotations

import time
from typing import Any

from devstack.errors import StackError
from devstack.health.findings import Findings, Probe
from devstack.health.records import Check, slow
from devstack.services.pgbouncer import Difference, PgBouncer

QUEUEING = 0.3
"""Seconds until the client that asks at the same time is in the queue, if there is one."""


def probe_configuration(pgb: PgBouncer) -> Probe:
    """The rendered files, as they are on disk."""

    def probe(findings: Findings) -> None:
        findings.add(_config("pgbouncer.ini", pgb.written_differently()))
        problem = pgb.userlist_problem()
        findings.add(
            Check(
                name="credentials",
                verdict="degraded" if problem else "healthy",
                text="" if problem else "settings and userlist have the same password",
                cause=problem,
                fix="inv pgb.reload renders it again" if problem else "",
                remedy="reload" if problem else "",
            )
        )

    return probe


def _config(where: str, differences: list[Difference]) -> Check:
    if not differences:
        return Check(name="config", text=f"{where} is as the settings say")
    keys = [difference.key for difference in differences]
    reachable = not any(key.startswith("listen_") for key in keys)
    return Check(
        name="config",
        verdict="degraded",
        value=", ".join(keys),
        cause=f"{where} is not as the settings say: {'; '.join(map(str, differences[:3]))}",
        fix=f"inv pgb.{'reload' if reachable else 'start'} renders it again",
        remedy="reload" if reachable else "restart",
    )


def probe_console(pgb: PgBouncer) -> Probe:
    """What PgBouncer says of itself on its admin console."""

    def probe(findings: Findings) -> None:
        try:
            with findings.waiting_for(f"its admin console at {pgb.address}"):
                config, databases, lists, pools = pgb.show_all("CONFIG", "DATABASES", "LISTS", "POOLS", seconds=2)
                if any(_lent(pool) >= _size(pgb, pool, databases) for pool in pools):
                    time.sleep(QUEUEING)
                    pools = pgb.show("POOLS")
        except StackError as error:
            findings.add(_refused(pgb, error.why))
            return
        loaded = pgb.loaded_differently(config, databases)
        if loaded:
            findings.add(_config("what it has loaded", loaded))
        findings.add(_paused(databases))
        findings.extend(_pool(pgb, pool, databases) for pool in pools if pool["database"] != "pgbouncer")
        findings.add(_clients(pgb, {str(row["list"]): int(row["items"]) for row in lists}))

    return probe


def _refused(pgb: PgBouncer, error: str) -> Check:
    """Why the admin console can't be reached, from libpq's words."""
    cause, fix = " ".join(error.split()), "inv pgb.logs"
    if "Connection refused" in error:
        cause, fix = f"nothing listens on port {pgb.port}, though it runs", "inv pgb.start"
    elif "password authentication failed" in error or "SASL" in error or "no such user" in error:
        cause, fix = "its admin console refuses the stack: userlist.txt has another entry for it", "inv pgb.start"
    elif "timeout expired" in error:
        cause = f"it takes connections at {pgb.address} and says nothing"
    return Check(name="console", verdict="unhealthy", cause=cause, fix=fix, remedy="restart")


def _paused(databases: list[dict[str, Any]]) -> Check:
    names = [str(row["name"]) for row in databases if row.get("paused") or row.get("disabled")]
    if not names:
        return Check(name="databases", text="no database is paused")
    return Check(
        name="databases",
        verdict="unhealthy",
        cause=f"{', '.join(names)} is paused or disabled in PgBouncer: clients wait",
        fix="inv dev.heal resumes it",
        remedy="unpause",
        upstream=True,  # a restore that was cut off has paused it
    )


def _pool(pgb: PgBouncer, pool: dict[str, Any], databases: list[dict[str, Any]]) -> Check:
    """A pool is saturated when clients wait for a server connection and all of them are lent."""
    limits, name = pgb.settings.health, f"{pool['database']}/{pool['user']}"
    lent, size = _lent(pool), _size(pgb, pool, databases)
    waiting, longest = int(pool["cl_waiting"]), int(pool["maxwait"])
    session = (pool.get("pool_mode") or pgb.settings.pgb.pool_mode) == "session"
    full = waiting > 0 and lent * 100 >= size * limits.pool_percent
    queue = f"{_clients_wait(waiting)}, the longest for {longest} s"
    cause = f"{queue}: PgBouncer opens no connection to the database, though {lent} of {size} are there"
    fix = "inv pgb.logs shows why"
    if full:
        idle = ", also by idle clients, since pool_mode is session" if session else ""
        cause = f"{lent} of the {size} server connections of pool {name} are taken{idle}: {queue}"
        other_mode = ", or set pgb.pool_mode: transaction" if session else ""
        fix = f"inv pgb.stats shows the clients; close some, or raise pgb.default_pool_size{other_mode}"
    return Check(
        name=f"pool {name}",
        text=f"{lent} of {size} server connections, {_clients_wait(waiting)}",
        value=round(lent / size, 3) if size else None,
        unit="ratio",
        limit=limits.pool_percent / 100,
        upstream=not full,
        **slow(full or longest >= limits.waiting_seconds, cause, fix),
    )


def _lent(pool: dict[str, Any]) -> int:
    return int(pool["sv_active"])


def _size(pgb: PgBouncer, pool: dict[str, Any], databases: list[dict[str, Any]]) -> int:
    """The server connections that a pool may have."""
    sizes = (int(row["pool_size"]) for row in databases if row["name"] == pool["database"])
    return next(sizes, pgb.settings.pgb.default_pool_size)


def _clients_wait(count: int) -> str:
    return f"{count} client{' waits' if count == 1 else 's wait'}"


def _clients(pgb: PgBouncer, lists: dict[str, int]) -> Check:
    most = pgb.settings.pgb.max_client_conn
    used, limit = lists.get("used_clients", 0), most * pgb.settings.health.connections_percent / 100
    return Check(
        name="clients",
        text=f"{used} of {most} clients",
        value=used,
        unit="count",
        limit=limit,
        **slow(
            used > limit,
            f"{used} of the {most} clients that may connect are there",
            "inv pgb.stats shows them; pgb.max_client_conn raises the limit",
        ),
    )


def probe_backend(pgb: PgBouncer) -> Probe:
    """A query to the database through PgBouncer, as the application's role."""

    def probe(findings: Findings) -> None:
        import psycopg2

        try:
            with findings.waiting_for(f"a connection to the database through {pgb.address}"):
                began = time.perf_counter()
                connection = pgb.database.connect(pooled=True, seconds=2)
                try:
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT 1")
                finally:
                    connection.close()
                ms = (time.perf_counter() - began) * 1000
        except StackError as error:
            findings.add(_unreachable(pgb, f"{error.what}: {error.why}"))
        except psycopg2.Error as error:
            findings.add(_unreachable(pgb, pgb.context.mask(str(error).strip())))
        else:
            text = f"reaches the database in {ms:.1f} ms, login included"
            findings.add(Check(name="backend", text=text, value=round(ms, 2), unit="ms"))

    return probe


def _unreachable(pgb: PgBouncer, error: str) -> Check:
    user, database = pgb.settings.db.user, pgb.database.name
    cause = f"it does not reach {database}: {' '.join(error.split())}"
    fix = "inv pgb.logs"
    remedy = "restart"
    if "SASL authentication failed" in error or "password authentication failed" in error:
        cause, fix = f"it is up but refuses {user}: wrong password on the way", "inv pgb.reload; inv pgb.start"
    elif "query_wait_timeout" in error or "timeout expired" in error:
        cause = f"it gave no connection to {database} within 2 s"
    elif "Connection refused" in error:
        cause, fix = f"nothing listens on port {pgb.port}, though it runs", "inv pgb.start"
    elif "no more connections allowed" in error:
        cause, fix = "it takes no more clients", "inv pgb.stats shows them; raise pgb.max_client_conn"
        remedy = ""
    return Check(name="backend", verdict="unhealthy", cause=cause, fix=fix, remedy=remedy, upstream=True)  # type: ignore[arg-type]
