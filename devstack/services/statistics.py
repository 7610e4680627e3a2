"""Figures of the running services in depth, as tables of rows: what ``inv db.stats`` and ``inv pgb.stats`` show.

The unit of a figure is the end of its key: ``_bytes``, ``_s``, ``_ms``, ``_ratio`` (0 to 1).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from devstack.errors import StackError
from devstack.providers import STATEMENTS
from devstack.services import queries
from devstack.services.pgbouncer import PgBouncer
from devstack.services.postgres import MAINTENANCE, Postgres

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

Row = dict[str, Any]


class Table(Struct, frozen=True):
    """Rows under a title. ``key`` is its name in JSON, which has every column of every row."""

    key: str
    title: str
    rows: list[Row]
    shown: Sequence[str] = ()
    """The columns for people; all if empty."""
    missing: str = ""
    """Why there is nothing to show, where that is not because there is none."""
    upright: bool = False
    """Whether its one row is shown as a column."""


def database_statistics(db: Postgres) -> list[Table]:
    """Sizes, dead rows, caches, statements, connections, transactions, locks.

    :raises StackError: the database does not answer.
    """
    import psycopg2

    try:
        connection = db.connect()
    except psycopg2.OperationalError as error:
        raise StackError(f"{db.name} does not answer", why=str(error).strip(), fix="inv db.start") from None
    try:
        tables = [_answer(db, connection, query) for query in queries.DATABASE]
    finally:
        connection.close()
    after = 1 + next(i for i, table in enumerate(tables) if table.key == "cache")
    return [*tables[:after], *_statement_tables(db), *tables[after:]]


def _answer(db: Postgres, connection: Connection, query: queries.Query) -> Table:
    """A table, or why it could not be read.

    :raises StackError: the connection broke.
    """
    import psycopg2

    rows: list[Row] = []
    missing = ""
    try:
        rows = _rows(db, connection, _marked(query.sql))
    except psycopg2.Error as error:
        missing = str(error).strip()
        if connection.closed:
            raise StackError(f"{db.name} went away", why=missing, fix="inv db.start") from None
    return Table(query.key, query.title, rows, query.shown, missing.partition("\n")[0], query.upright)


def _statement_tables(db: Postgres) -> list[Table]:
    shown = ("calls", "total_ms", "mean_ms", "max_ms", "rows", "statement")
    rows, missing = statements(db)
    return [
        Table("statements_by_total_time", "Statements by their time altogether", rows, shown, missing),
        Table(
            "statements_by_mean_time",
            "Statements by their time for one call",
            sorted(rows, key=lambda row: -row["mean_ms"]),
            shown,
            missing,
        ),
    ]


def statements(db: Postgres) -> tuple[list[Row], str]:
    """What the statements in the application's database took since they are counted, by total time; why there are
    none, where they are not counted.

    They are counted for all databases at once, and read in the one where their view is.
    """
    import psycopg2

    try:
        connection = db.connect(database=MAINTENANCE)
        try:
            return read_statements(db, connection), ""
        finally:
            connection.close()
    except psycopg2.Error as error:
        return [], why_no_statements(db, error)


def read_statements(db: Postgres, connection: Connection, most: int | None = 200) -> list[Row]:
    """The statements, at most so many, over a connection to the maintenance database.

    :raises psycopg2.Error: they are not counted; :func:`why_no_statements` says why.
    """
    return _rows(db, connection, queries.STATEMENTS, (db.settings.db.name, f"%{MARK}%", most))


def why_no_statements(db: Postgres, error: Exception) -> str:
    """Why the statements could not be read."""
    if not db.settings.db.track_statements:
        return f"not counted: db.track_statements is false, from {db.settings.origin('db.track_statements')}"
    if not db.programs.tracks_statements:
        return f"not counted: the PostgreSQL in {db.programs.bin} has no {STATEMENTS}"
    reason = str(error).partition("\n")[0]
    return f"not counted ({reason}); inv db.start loads {STATEMENTS}"


MARK = "/* nv-devstack */"
"""In every statement of ours on the application's database, which are not the application's."""


def _marked(sql: str) -> str:
    # within it: what is before it is not kept
    return sql.replace("SELECT", f"SELECT {MARK}", 1)


PASSWORD = re.compile(r"(\bpassword\s+)'(?:[^']|'')*'", re.IGNORECASE)


def _rows(
    db: Postgres, connection: Connection, sql: str, values: tuple[str | int | None, ...] | None = None
) -> list[Row]:
    """The answer as rows; no secret is in the statements among it."""
    import psycopg2.extras

    def clean(key: str, value: Any) -> Any:
        if key.endswith("statement") and value is not None:
            return db.context.mask(PASSWORD.sub(r"\1'***'", value))
        return value

    with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute("SET lock_timeout = '2s'")
        cursor.execute(sql, values)
        return [{key: clean(key, value) for key, value in row.items()} for row in cursor.fetchall()]


def pooler_statistics(pgb: PgBouncer) -> list[Table]:
    """Pools, databases, clients, servers, traffic (https://www.pgbouncer.org/usage.html#show-commands).

    :raises StackError: the admin console does not answer.
    """
    commands = ("POOLS", "DATABASES", "STATS", "CLIENTS", "SERVERS", "LISTS")
    answers = dict(zip(commands, pgb.show_all(*commands), strict=True))
    now = time.time()
    sizes = {row["name"]: row["pool_size"] for row in answers["DATABASES"]}
    own = {
        what: [row for row in rows if row.get("database") != "pgbouncer"]
        for what, rows in answers.items()
        if what != "LISTS"
    }
    return [
        Table(
            "pools",
            "Pools",
            [pool(row, sizes.get(row["database"])) for row in own["POOLS"]],
            (
                *("database", "user", "pool_mode", "pool_size", "servers_active", "used_ratio"),
                *("clients_active", "clients_waiting", "longest_wait_s"),
            ),
        ),
        Table("databases", "Databases", [_database(row) for row in own["DATABASES"]]),
        Table("traffic", "Traffic", [traffic(row) for row in own["STATS"]], TRAFFIC_SHOWN),
        Table("clients", "Clients", [_peer(row, now) for row in own["CLIENTS"]], PEER_SHOWN),
        Table("servers", "Servers", [_peer(row, now) for row in own["SERVERS"]], (*PEER_SHOWN, "server_pid")),
        Table("lists", "Lists", [{row["list"]: row["items"] for row in answers["LISTS"]}], upright=True),
    ]


SERVER_STATES = ("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "sv_active_cancel", "sv_being_canceled")


def pool(row: Row, size: int | None) -> Row:
    """A row of SHOW POOLS. A wait ends when a server becomes free; ``longest_wait_s`` is that of who waits now."""
    servers = sum(row.get(state, 0) for state in SERVER_STATES)
    return {
        "database": row["database"],
        "user": row["user"],
        "pool_mode": row["pool_mode"],
        "pool_size": size,
        "servers": servers,
        "servers_active": row["sv_active"],
        "servers_idle": row["sv_idle"] + row.get("sv_used", 0),
        "used_ratio": round(row["sv_active"] / size, 4) if size else None,
        "clients_active": row["cl_active"],
        "clients_waiting": row["cl_waiting"],
        "longest_wait_s": round(row["maxwait"] + row.get("maxwait_us", 0) / 1e6, 6),
    }


TRAFFIC_SHOWN = (
    *("database", "transactions", "queries", "received_bytes", "sent_bytes"),
    *("recent_transaction_ms", "recent_query_ms", "recent_wait_ms", "total_wait_ms"),
)


def traffic(row: Row) -> Row:
    """A row of SHOW STATS: since PgBouncer's start, and ``recent_…`` the means of its last minute (stats_period)."""
    milliseconds = {
        "total_transaction_ms": "total_xact_time",
        "total_query_ms": "total_query_time",
        "total_wait_ms": "total_wait_time",
        "recent_transaction_ms": "avg_xact_time",
        "recent_query_ms": "avg_query_time",
        "recent_wait_ms": "avg_wait_time",
    }
    return {
        "database": row["database"],
        "transactions": row["total_xact_count"],
        "queries": row["total_query_count"],
        "received_bytes": row["total_received"],
        "sent_bytes": row["total_sent"],
        **{key: row[source] / 1000 for key, source in milliseconds.items()},
    }


def _database(row: Row) -> Row:
    return {
        "database": row["name"],
        "server": f"{row['host']}:{row['port']}",
        "name_there": row["database"],
        "pool_size": row["pool_size"],
        "reserve_size": row.get("reserve_pool", row.get("reserve_pool_size")),
        "max_connections": row["max_connections"] or None,
        "connections": row["current_connections"],
        "paused": bool(row["paused"]),
        "disabled": bool(row["disabled"]),
    }


PEER_SHOWN = ("user", "database", "application", "address", "state", "connect_age_s", "request_age_s", "wait_s")


def _age(text: str, now: float) -> int | None:
    """Seconds since a time as PgBouncer shows it; it runs with the time zone UTC."""
    try:
        then = datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return max(0, int(now - then.timestamp()))


def _peer(row: Row, now: float) -> Row:
    """A row of SHOW CLIENTS or SHOW SERVERS."""
    peer = {
        "user": row["user"],
        "database": row["database"],
        "application": row.get("application_name", ""),
        "address": f"{row['addr']}:{row['port']}",
        "state": row["state"],
        "connect_age_s": _age(row["connect_time"], now),
        "request_age_s": _age(row["request_time"], now),
        "wait_s": round(row["wait"] + row["wait_us"] / 1e6, 6),
    }
    return {**peer, "server_pid": row["remote_pid"]} if row["type"] == "S" else peer
