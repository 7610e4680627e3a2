"""A reading for people: one screen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from devstack import console
from devstack.metrics.figures import Reading, ServiceReading

WIDTH = 120
GAP = "     "
HISTORY = 20
"""How many readings a sparkline shows."""
STATEMENTS = 5
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"

Line = tuple[str, str, str]
"""What it says, the figure of it now, the figure of it altogether."""

API: Sequence[Line] = (
    ("requests", "requests_per_s", "requests"),
    ("client errors (4xx)", "errors_4xx_ratio", "errors_4xx_ratio"),
    ("server errors (5xx)", "errors_5xx_ratio", "errors_5xx_ratio"),
    ("latency p50", "p50_ms", "p50_ms"),
    ("latency p95", "p95_ms", "p95_ms"),
    ("latency p99", "p99_ms", "p99_ms"),
)
POSTGRES: Sequence[Line] = (
    ("transactions", "transactions_per_s", "transactions"),
    ("rolled back", "rollback_ratio", "rollback_ratio"),
    ("cache hits", "cache_hit_ratio", "cache_hit_ratio"),
    ("rows read", "rows_read", "rows_read"),
    ("rows written", "rows_written", "rows_written"),
    ("deadlocks", "deadlocks", "deadlocks"),
)
PGBOUNCER: Sequence[Line] = (
    ("queries", "queries_per_s", "queries"),
    ("received", "received_bytes_per_s", "received_bytes"),
    ("sent", "sent_bytes_per_s", "sent_bytes"),
    ("time of a query", "query_ms", "query_ms"),
    ("wait for a server", "wait_ms", "wait_ms"),
)


def screen(history: Sequence[Reading], *, plain: bool, watch: bool) -> list[str]:
    """The last reading; with ``watch`` the course of each figure beside it."""
    reading = history[-1]
    bars = PLAIN_BARS if plain or not console.readable() else BARS

    def course(*path: str | int) -> str:
        # from the right, and as wide from the start as it gets: nothing moves from screen to screen
        return sparkline([_at(r, path) for r in history[-HISTORY:]], bars).rjust(HISTORY) if watch else ""

    over = f"  over {console.duration(reading.interval_s)}" if reading.interval_s else ""
    lines = [console.paint(f"{reading.time}{over}", "dim"), "", *_services(reading, course)]
    parts = [
        _part(reading, title, part, rows, gauges, course)
        for title, part, rows, gauges in (
            ("API", "api", API, _api_gauges(reading)),
            ("PostgreSQL", "postgres", POSTGRES, _postgres_gauges(reading)),
            ("PgBouncer", "pgbouncer", PGBOUNCER, _pgbouncer_gauges(reading)),
        )
    ]
    return [*lines, *_side_by_side([part for part in parts if part]), *_statements(reading, plain)]


def _side_by_side(parts: Sequence[list[str]]) -> list[str]:
    """The parts in columns if they fit, else below one another."""
    widths = [max(map(console.width, part)) for part in parts]
    if sum(widths) + len(GAP) * (len(parts) - 1) > WIDTH:
        return [line for part in parts for line in ("", *part)]
    rows = itertools.zip_longest(*parts, fillvalue="")
    return ["", *(GAP.join(map(console.pad, row, widths)).rstrip() for row in rows)] if parts else []


def sparkline(values: Sequence[float | None], bars: str) -> str:
    """The values as bars, the highest one full; a blank where there is none."""
    highest = max((value for value in values if value is not None), default=0) or 1
    top = len(bars) - 1
    return "".join(" " if value is None else bars[round(top * value / highest)] for value in values)


Course = Callable[..., str]
"""The sparkline of a figure, given its place in a reading."""


def _at(value: Any, path: Sequence[str | int]) -> float | None:
    for step in path:
        value = value[step] if isinstance(step, int) else getattr(value, step, None)
    return None if value is None else float(value)


def _services(reading: Reading, course: Course) -> list[str]:
    rows = []
    for i, service in enumerate(reading.services):
        cpu, memory, processes, up = (
            console.figure(key, getattr(service, key)) for key in ("cpu_ratio", "memory_bytes", "processes", "uptime_s")
        )
        cpus, memories = course("services", i, "cpu_ratio"), course("services", i, "memory_bytes")
        rows.append((service.service, _word(service), cpu, cpus, memory, memories, processes, up))
    header = ("service", "state", "CPU", "", "memory", "", "processes", "up")
    shown = [i for i in range(len(header)) if header[i] or any(row[i] for row in rows)]
    right = [shown.index(i) for i in (2, 4, 6, 7)]
    lines = console.table([[row[i] for i in shown] for row in rows], [header[i] for i in shown], right=right)
    reasons = [(s.service, s.reason) for s in reading.services] + [(reading.services[-1].service, reading.api.missing)]
    return [*lines, *(f"{service}: {reason}" for service, reason in reasons if reason)]


def _word(service: ServiceReading) -> str:
    return "not answering" if service.state == "running" and not service.up else service.state


def _part(
    reading: Reading, title: str, part: str, rows: Sequence[Line], gauges: Sequence[tuple[str, str]], course: Course
) -> list[str]:
    values = getattr(reading, part)
    body: list[tuple[str, ...]] = []
    if values.total:
        for what, now, total in rows:
            body.append((what, _figure(values.now, now), _figure(values.total, total), course(part, "now", now)))
    body += [(what, figure, "", "") for what, figure in gauges]
    if not body:
        return []
    shown = range(4) if any(row[3] for row in body) else range(3)
    return console.table(
        [[row[i] for i in shown] for row in body], [(title, "now", "total", "")[i] for i in shown], right=(1, 2)
    )


def _figure(figures: Any, key: str) -> str:
    return console.figure(key, getattr(figures, key, None))


def _api_gauges(reading: Reading) -> list[tuple[str, str]]:
    api = reading.api
    lines = [] if api.in_progress is None else [("in progress", str(api.in_progress))]
    if api.pool_active is not None:
        lines.append(("connections lent", f"{api.pool_active}{_of(api.pool_max)}"))
    return lines


def _postgres_gauges(reading: Reading) -> list[tuple[str, str]]:
    postgres = reading.postgres
    if postgres.total is None:
        return []
    return [
        ("connections", f"{postgres.connections}{_of(postgres.max_connections)}"),
        ("of these active", str(postgres.connections_active)),
        ("database size", console.figure("size_bytes", postgres.size_bytes)),
    ]


def _pgbouncer_gauges(reading: Reading) -> list[tuple[str, str]]:
    pooler = reading.pgbouncer
    if pooler.total is None:
        return []
    return [
        ("clients", str(pooler.clients_active)),
        ("clients waiting", str(pooler.clients_waiting)),
        ("longest wait", console.figure("longest_wait_s", pooler.longest_wait_s)),
        ("servers in use", f"{pooler.servers_active}{_of(pooler.pool_size)}"),
    ]


def _of(most: int | None) -> str:
    return f" of {most}" if most else ""


def _statements(reading: Reading, plain: bool) -> list[str]:
    postgres = reading.postgres
    if postgres.total is None:
        return []
    if postgres.statements_missing:
        return ["", console.paint("statements", "dim"), postgres.statements_missing]
    keys = ("share_ratio", "total_ms", "mean_ms", "calls", "statement")
    rows = [[console.figure(key, row[key]) for key in keys] for row in postgres.statements[:STATEMENTS]]
    header = ("share", "total", "mean", "calls", "statement")
    return ["", *console.table(rows, header, right=range(4), limit=WIDTH, plain=plain)] if rows else []
