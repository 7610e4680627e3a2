"""What ``inv db.stats`` asks PostgreSQL (https://www.postgresql.org/docs/current/monitoring-stats.html).

Ages and durations are in seconds up to now, sizes in bytes. Counters run since ``stats_reset``. Written for
PostgreSQL 13 and later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Query(NamedTuple):
    """A table of ``inv db.stats``; ``shown`` are the columns for people, all if empty; ``upright`` is one row shown
    as a column."""

    key: str
    title: str
    sql: str
    shown: Sequence[str] = ()
    upright: bool = False


OVERVIEW = """
SELECT current_database() AS database,
       split_part(current_setting('server_version'), ' ', 1) AS server_version,
       extract(epoch FROM now() - pg_postmaster_start_time())::bigint AS uptime_s,
       pg_database_size(current_database()) AS size_bytes,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('max_connections')::int AS max_connections,
       xact_commit AS commits, xact_rollback AS rollbacks,
       round(blks_hit::numeric / nullif(blks_hit + blks_read, 0), 4)::float AS cache_hit_ratio,
       temp_bytes, deadlocks,
       to_char(stats_reset AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS stats_reset
  FROM pg_stat_database WHERE datname = current_database()
"""

_LOCKED = """
WITH locked AS (
SELECT l.relation, coalesce(i.indrelid, l.relation) AS relid
  FROM pg_locks l LEFT JOIN pg_index i ON i.indexrelid = l.relation
 WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
"""What somebody has, or wants, for himself alone: asked for its size PostgreSQL would wait until he is done."""

TABLES = f"""{_LOCKED}
SELECT schemaname || '.' || relname AS "table",
       CASE WHEN relid NOT IN (SELECT relid FROM locked) THEN pg_total_relation_size(relid) END AS size_bytes,
       CASE WHEN relid NOT IN (SELECT relid FROM locked) THEN pg_table_size(relid) END AS table_bytes,
       CASE WHEN relid NOT IN (SELECT relid FROM locked) THEN pg_indexes_size(relid) END AS index_bytes,
       n_live_tup AS rows, n_dead_tup AS dead_rows,
       round(n_dead_tup::numeric / nullif(n_live_tup + n_dead_tup, 0), 4)::float AS dead_ratio,
       extract(epoch FROM now() - greatest(last_vacuum, last_autovacuum))::bigint AS vacuum_age_s,
       extract(epoch FROM now() - greatest(last_analyze, last_autoanalyze))::bigint AS analyze_age_s,
       seq_scan AS sequential_scans, coalesce(idx_scan, 0) AS index_scans,
       n_tup_ins AS inserted, n_tup_upd AS updated, n_tup_del AS deleted
  FROM pg_stat_user_tables ORDER BY size_bytes DESC NULLS LAST, 1
"""  # noqa: S608

_INDEX = f"""{_LOCKED}
SELECT s.schemaname || '.' || s.indexrelname AS index, s.relname AS "table",
       CASE WHEN indexrelid NOT IN (SELECT relation FROM locked) THEN pg_relation_size(indexrelid) END AS size_bytes,
       s.idx_scan AS scans,
       CASE WHEN NOT i.indisvalid THEN 'invalid' WHEN i.indisprimary THEN 'primary key'
            WHEN i.indisunique THEN 'unique' ELSE a.amname END AS kind
  FROM pg_stat_user_indexes s
  JOIN pg_index i USING (indexrelid)
  JOIN pg_class c ON c.oid = s.indexrelid
  JOIN pg_am a ON a.oid = c.relam
"""  # noqa: S608

INDEXES = f"{_INDEX} ORDER BY size_bytes DESC NULLS LAST, 1"

UNUSED_INDEXES = f"""{_INDEX}
 WHERE s.idx_scan = 0
   -- these have a task besides being searched
   AND NOT (i.indisunique OR i.indisreplident)
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = s.indexrelid)
 ORDER BY size_bytes DESC NULLS LAST, 1
"""

CACHE = """
SELECT schemaname || '.' || relname AS "table",
       round(heap_blks_hit::numeric / nullif(heap_blks_hit + heap_blks_read, 0), 4)::float AS table_hit_ratio,
       round(idx_blks_hit::numeric / nullif(idx_blks_hit + idx_blks_read, 0), 4)::float AS index_hit_ratio,
       block * (heap_blks_hit + coalesce(idx_blks_hit, 0) + coalesce(toast_blks_hit, 0)) AS hit_bytes,
       block * (heap_blks_read + coalesce(idx_blks_read, 0) + coalesce(toast_blks_read, 0)) AS read_bytes
  FROM pg_statio_user_tables, (VALUES (current_setting('block_size')::bigint)) AS v (block)
 ORDER BY read_bytes DESC, 1
"""

BY_STATE = """
SELECT datname AS database, coalesce(state, 'unknown') AS state, count(*) AS connections,
       extract(epoch FROM max(clock_timestamp() - state_change))::bigint AS longest_s
  FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""

BY_APPLICATION = """
SELECT application_name AS application, usename AS user, datname AS database, host(client_addr) AS address,
       count(*) AS connections, count(*) FILTER (WHERE state <> 'idle') AS busy,
       extract(epoch FROM max(clock_timestamp() - backend_start))::bigint AS oldest_s
  FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
 GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3
"""

TRANSACTIONS = """
SELECT pid, usename AS user, application_name AS application, backend_type AS kind, coalesce(state, '') AS state,
       extract(epoch FROM clock_timestamp() - xact_start)::bigint AS open_s,
       extract(epoch FROM clock_timestamp() - state_change)::bigint AS in_state_s,
       concat_ws(': ', wait_event_type, wait_event) AS waits_for, query AS statement
  FROM pg_stat_activity
 WHERE xact_start IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()
 ORDER BY xact_start
"""

BLOCKING = """
SELECT blocked.pid,
       extract(epoch FROM clock_timestamp() - blocked.query_start)::bigint AS waiting_s,
       wanted.mode AS lock, coalesce(wanted.relation, row_of.relation)::regclass::text AS "table",
       by.pid AS blocked_by, blocker.application_name AS blocker, blocker.state AS blocker_state,
       extract(epoch FROM clock_timestamp() - blocker.xact_start)::bigint AS blocker_open_s,
       blocker.query AS blocker_statement, blocked.query AS statement
  FROM pg_stat_activity blocked
 CROSS JOIN LATERAL (SELECT DISTINCT unnest(pg_blocking_pids(blocked.pid))) AS by (pid)
  LEFT JOIN pg_stat_activity blocker ON blocker.pid = by.pid
  LEFT JOIN LATERAL (SELECT mode, relation FROM pg_locks WHERE pid = blocked.pid AND NOT granted LIMIT 1) wanted ON true
  -- who waits for a row waits for the transaction that has it, and holds a lock on the row's place meanwhile
  LEFT JOIN LATERAL (
       SELECT relation FROM pg_locks WHERE pid = blocked.pid AND granted AND locktype = 'tuple' LIMIT 1) row_of ON true
 WHERE blocked.datname = current_database() AND blocked.wait_event_type = 'Lock'
 ORDER BY waiting_s DESC, blocked.pid, by.pid
"""
"""One row for each pair; a transaction that is prepared has pid 0."""

LOCKS = """
SELECT coalesce(l.relation::regclass::text, l.locktype) AS object, l.mode,
       count(*) FILTER (WHERE l.granted) AS held, count(*) FILTER (WHERE NOT l.granted) AS waiting
  FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND l.locktype <> 'virtualxid'
 GROUP BY 1, 2 ORDER BY 4 DESC, 1, 2
"""

EXTENSIONS = "SELECT extname AS extension, extversion AS version FROM pg_extension ORDER BY 1"

STATEMENTS = """
SELECT s.queryid::text AS id, r.rolname AS user, s.calls,
       round(s.total_exec_time::numeric, 3)::float AS total_ms,
       round(s.mean_exec_time::numeric, 3)::float AS mean_ms,
       round(s.max_exec_time::numeric, 3)::float AS max_ms,
       s.rows,
       round((s.total_exec_time / nullif(sum(s.total_exec_time) OVER (), 0))::numeric, 4)::float AS share_ratio,
       round(s.shared_blks_hit::numeric / nullif(s.shared_blks_hit + s.shared_blks_read, 0), 4)::float
           AS cache_hit_ratio,
       s.query AS statement
  FROM pg_stat_statements s
  JOIN pg_database d ON d.oid = s.dbid
  LEFT JOIN pg_roles r ON r.oid = s.userid
 WHERE d.datname = %s AND s.query NOT LIKE %s
 ORDER BY s.total_exec_time DESC, 1 LIMIT %s
"""
"""https://www.postgresql.org/docs/current/pgstatstatements.html"""

DATABASE = (
    Query("database", "Database", OVERVIEW, upright=True),
    Query(
        "tables",
        "Tables",
        TABLES,
        ("table", "size_bytes", "table_bytes", "index_bytes", "rows", "dead_rows", "vacuum_age_s", "analyze_age_s"),
    ),
    Query("indexes", "Indexes", INDEXES),
    Query("unused_indexes", "Indexes that were never used", UNUSED_INDEXES),
    Query("cache", "Cache hits", CACHE),
    Query("connections_by_state", "Connections by state", BY_STATE),
    Query("connections_by_application", "Connections by application", BY_APPLICATION),
    Query(
        "transactions",
        "Open transactions",
        TRANSACTIONS,
        ("pid", "application", "state", "open_s", "in_state_s", "waits_for", "statement"),
    ),
    Query(
        "blocking",
        "Who waits for whom",
        BLOCKING,
        ("pid", "waiting_s", "lock", "table", "blocked_by", "blocker", "blocker_state", "statement"),
    ),
    Query("locks", "Locks", LOCKS),
    Query("extensions", "Extensions", EXTENSIONS),
)
