"""A sample in Prometheus' text format: the application's own families, then ours, which begin with ``nv_``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devstack.metrics.sampling import DatabaseSample, PoolerSample, Sample

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

STATEMENTS = 20
"""How many statements, by their time, get a series."""


def render(sample: Sample) -> str:
    """One exposition of all services (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(sample))
    theirs = sample.api.text.rstrip("\n") if sample.api else ""
    return (theirs + "\n" if theirs else "") + generate_latest(registry).decode()


@dataclass(frozen=True, eq=False)
class _Collector:
    """What prometheus_client asks for families."""

    sample: Sample

    def collect(self) -> Iterator[Metric]:
        taken = self.sample.api.families if self.sample.api else frozenset()
        yield from (family for family in self._families() if family.samples and family.name not in taken)

    def _families(self) -> Iterator[Metric]:
        yield from _services(self.sample)
        if self.sample.db:
            yield from _postgres(self.sample.db)
        if self.sample.pgb:
            yield from _pgbouncer(self.sample.pgb)


Series = Iterable[tuple[tuple[str, ...], float | None]]


def _gauge(name: str, what: str, labels: Iterable[str], series: Series) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, what, labels=list(labels)), series)


def _counter(name: str, what: str, labels: Iterable[str], series: Series) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, what, labels=list(labels)), series)


def _filled(family: Any, series: Series) -> Metric:
    for labels, value in series:
        if value is not None:
            family.add_metric(list(labels), round(value, 6))
    metric: Metric = family
    return metric


def _services(sample: Sample) -> Iterator[Metric]:
    names = {label: state.name for label, state in sample.states.items()}
    used = [((names[label],), usage) for label, usage in sample.usage.items()]
    up = [((name,), float(label not in sample.missing)) for label, name in names.items()]
    started = [((state.name,), state.started or None) for state in sample.states.values()]
    yield _gauge("nv_service_up", "Whether the service runs and answers.", ["service"], up)
    yield _gauge("nv_service_start_time_seconds", "When it was started, since the epoch.", ["service"], started)
    yield _gauge(
        "nv_service_memory_bytes", "Memory of its processes.", ["service"], [(key, u.memory) for key, u in used]
    )
    yield _gauge("nv_service_processes", "Its processes.", ["service"], [(key, u.processes) for key, u in used])
    yield _counter(
        "nv_service_cpu_seconds", "Processor time of its processes.", ["service"], [(key, u.cpu) for key, u in used]
    )


def _postgres(db: DatabaseSample) -> Iterator[Metric]:
    c = db.counters
    yield _gauge("nv_postgres_database_size_bytes", "Size of the database.", [], [((), db.size)])
    yield _gauge("nv_postgres_connections", "Connections of clients.", [], [((), db.connections)])
    yield _gauge("nv_postgres_active_connections", "Those that run a statement.", [], [((), db.active)])
    yield _gauge("nv_postgres_max_connections", "Connections there may be.", [], [((), db.max_connections)])
    yield _counter(
        "nv_postgres_transactions",
        "Transactions in the database.",
        ["result"],
        [(("commit",), c["commits"]), (("rollback",), c["rollbacks"])],
    )
    yield _counter(
        "nv_postgres_blocks",
        "Blocks asked for: found in PostgreSQL's cache, or read.",
        ["source"],
        [(("cache",), c["blocks_hit"]), (("read",), c["blocks_read"])],
    )
    yield _counter(
        "nv_postgres_rows",
        "Rows read by scans, rows written.",
        ["what"],
        [(("read",), c["rows_read"]), (("written",), c["rows_written"])],
    )
    yield _counter("nv_postgres_temp_bytes", "Written to temporary files.", [], [((), c["temp_bytes"])])
    yield _counter("nv_postgres_deadlocks", "Deadlocks.", [], [((), c["deadlocks"])])
    if not db.statements_missing:
        yield from _statements(db.statements[:STATEMENTS])


def _statements(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    for name, what, column, factor in (
        ("calls", "Calls of the statements that take most of the time.", "calls", 1.0),
        ("seconds", "Their execution time.", "total_ms", 0.001),
        ("rows", "Rows they gave or changed.", "rows", 1.0),
    ):
        series: dict[tuple[str, ...], float] = {}
        for row in rows:
            # with pg_stat_statements.track = all one comes twice: by itself, and inside a function
            key = (str(row["id"]), str(row["user"]), " ".join(row["statement"].split())[:100])
            series[key] = series.get(key, 0.0) + row[column] * factor
        yield _counter(f"nv_postgres_statement_{name}", what, ["queryid", "role", "statement"], series.items())


def _pgbouncer(pgb: PoolerSample) -> Iterator[Metric]:
    for name, what, column, factor in (
        ("transactions", "Transactions.", "transactions", 1.0),
        ("queries", "Queries.", "queries", 1.0),
        ("received_bytes", "Bytes from clients.", "received_bytes", 1.0),
        ("sent_bytes", "Bytes to clients.", "sent_bytes", 1.0),
        ("query_seconds", "Time of queries.", "total_query_ms", 0.001),
        ("wait_seconds", "Time that clients waited for a server connection.", "total_wait_ms", 0.001),
    ):
        series = [((row["database"],), row[column] * factor) for row in pgb.traffic]
        yield _counter(f"nv_pgbouncer_{name}", what, ["database"], series)
    for name, what, column in (
        ("active_clients", "Clients linked to a server connection, or idle.", "clients_active"),
        ("waiting_clients", "Clients that wait for a server connection.", "clients_waiting"),
        ("longest_wait_seconds", "How long the first of them has waited.", "longest_wait_s"),
        ("servers", "Server connections.", "servers"),
        ("active_servers", "Those linked to a client.", "servers_active"),
        ("pool_size", "Server connections there may be.", "pool_size"),
    ):
        pools = [((row["database"], row["user"]), row[column]) for row in pgb.pools]
        yield _gauge(f"nv_pgbouncer_{name}", what, ["database", "user"], pools)
