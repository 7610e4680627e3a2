"""Figures of the running services, as tables of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from devstack.errors import StackError
from devstack.services.pgbouncer import PgBouncer
from devstack.services.postgres import Postgres


@dataclass(frozen=True)
class Table:
    """Rows under a title. ``key`` is its name in JSON."""

    key: str
    title: str
    rows: list[dict[str, Any]]


OVERVIEW = """
SELECT pg_database_size(current_database()) AS size_bytes,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('max_connections')::int AS max_connections,
       xact_commit AS commits, xact_rollback AS rollbacks,
       round(blks_hit::numeric / nullif(blks_hit + blks_read, 0), 4)::float AS cache_hit_ratio,
       deadlocks,
       split_part(current_setting('server_version'), ' ', 1) AS server_version
  FROM pg_stat_database WHERE datname = current_database()
"""
"""https://www.postgresql.org/docs/current/monitoring-stats.html"""

TABLES = """
SELECT schemaname || '.' || relname AS "table", n_live_tup AS rows, n_dead_tup AS dead_rows,
       pg_total_relation_size(relid) AS size_bytes
  FROM pg_stat_user_tables ORDER BY size_bytes DESC, 1 LIMIT 20
"""

EXTENSIONS = "SELECT extname AS extension, extversion AS version FROM pg_extension ORDER BY 1"


def database_statistics(db: Postgres) -> list[Table]:
    """Sizes, connections, cache hits. Sizes are in bytes.

    :raises StackError: the database does not answer.
    """
    import psycopg2
    import psycopg2.extras

    try:
        connection = db.connect()
    except psycopg2.OperationalError as error:
        raise StackError(f"{db.name} does not answer", why=str(error).strip(), fix="inv db.start") from None
    try:
        with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            tables = []
            for key, title, query in (
                ("database", "Database", OVERVIEW),
                ("tables", "Largest tables", TABLES),
                ("extensions", "Extensions", EXTENSIONS),
            ):
                cursor.execute(query)
                tables.append(Table(key, title, [dict(row) for row in cursor.fetchall()]))
            return tables
    finally:
        connection.close()


POOLS = ("database", "user", "cl_active", "cl_waiting", "sv_active", "sv_idle", "maxwait", "pool_mode")
STATS = (
    "database",
    "total_xact_count",
    "total_query_count",
    "total_received",
    "total_sent",
    "avg_query_time",
    "avg_wait_time",
)


def pooler_statistics(pgb: PgBouncer) -> list[Table]:
    """Pools and traffic. Waits and query times are in microseconds, traffic in bytes
    (https://www.pgbouncer.org/usage.html#show-commands).

    :raises StackError: the admin console does not answer.
    """
    pools = [row for row in pgb.show("POOLS") if row["database"] != "pgbouncer"]
    stats = [row for row in pgb.show("STATS") if row["database"] != "pgbouncer"]
    return [
        Table("pools", "Pools", [{key: row.get(key) for key in POOLS} for row in pools]),
        Table("traffic", "Traffic", [{key: row.get(key) for key in STATS} for row in stats]),
    ]
