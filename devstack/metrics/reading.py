"""Readings: the figures between two samples, and those since the counters began."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone

from devstack.metrics.application import Requests
from devstack.metrics.figures import (
    ApiFigures,
    ApiReading,
    PgBouncerFigures,
    PgBouncerReading,
    PostgresFigures,
    PostgresReading,
    Reading,
    ServiceReading,
)
from devstack.metrics.sampling import PoolerSample, Sample, take
from devstack.stack import Stack


def readings(stack: Stack, *, span: float, every: float) -> Iterator[Reading]:
    """A reading over ``span`` seconds; then, unless 0, another one ``every`` so many seconds, over these.

    :raises StackError: the runtime can't say what runs.
    """
    before = take(stack)
    if before.empty and not every:
        yield read(None, before, time.time())
        return
    due = time.monotonic() + span
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        after = take(stack)
        yield read(before, after, time.time())
        if not every:
            return
        before = after
        due = max(due + every, time.monotonic())


def read(before: Sample | None, after: Sample, clock: float) -> Reading:
    """The figures of a sample, and those since the one before it. ``clock`` is in seconds since the epoch."""
    return Reading(
        time=datetime.fromtimestamp(clock, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        interval_s=_seconds(before, after, "usage"),
        services=[_service(label, before, after, clock) for label in ("db", "pgb", "api")],
        api=_api(before, after),
        postgres=_postgres(before, after),
        pgbouncer=_pgbouncer(before, after),
    )


def _seconds(before: Sample | None, after: Sample, label: str) -> float | None:
    """Between the two moments at which a part was read."""
    if before is None or label not in before.at or label not in after.at:
        return None
    return round(after.at[label] - before.at[label], 3) or None


def _service(label: str, before: Sample | None, after: Sample, clock: float) -> ServiceReading:
    state, usage, seconds = after.states[label], after.usage.get(label), _seconds(before, after, "usage")
    earlier = before.usage.get(label) if before and before.states[label].pid == state.pid else None
    cpu = None
    if usage and earlier and seconds:
        # processes that ended in between took their time along
        cpu = round(max(0.0, usage.cpu - earlier.cpu) / seconds, 4)
    reason = after.missing.get(label, "")
    return ServiceReading(
        service=state.name,
        state=state.status,
        up=state.running and not reason,
        reason=reason if state.running else "" if state.status == "stopped" else state.detail,
        uptime_s=int(max(0.0, clock - state.started)) if state.running and state.started else None,
        cpu_ratio=cpu,
        memory_bytes=usage.memory if usage else None,
        processes=usage.processes if usage else None,
    )


def _api(before: Sample | None, after: Sample) -> ApiReading:
    if after.api is None:
        return ApiReading(None, None, None, None, None, None, "")
    requests, now = after.api.requests, None
    seconds = _seconds(before, after, "api")
    if before and before.api and before.api.requests and requests and seconds:
        between = requests.since(before.api.requests)
        now = _api_figures(between, seconds) if between else None
    gauge = {key: int(value) for key, value in after.api.pool.items()}
    return ApiReading(
        now=now,
        total=_api_figures(requests, None) if requests else None,
        in_progress=None if after.api.in_progress is None else int(after.api.in_progress),
        pool_active=gauge.get("active"),
        pool_idle=gauge.get("idle"),
        pool_max=gauge.get("max"),
        missing=after.api.missing,
    )


def _api_figures(requests: Requests, seconds: float | None) -> ApiFigures:
    count = requests.count
    client, server = requests.by_class.get("4", 0), requests.by_class.get("5", 0)
    p50, p95, p99 = (_milliseconds(requests.quantile(share)) for share in (0.5, 0.95, 0.99))
    return ApiFigures(
        requests=int(count),
        requests_per_s=_ratio(count, seconds),
        errors_4xx=int(client),
        errors_5xx=int(server),
        errors_4xx_ratio=_ratio(client, count),
        errors_5xx_ratio=_ratio(server, count),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )


def _postgres(before: Sample | None, after: Sample) -> PostgresReading:
    sample = after.db
    if sample is None:
        return PostgresReading(None, None, None, None, None, None, [], "")
    seconds, now = _seconds(before, after, "db"), None
    if before and before.db and seconds:
        between = _difference(before.db.counters, sample.counters)
        now = _postgres_figures(between, seconds) if between else None
    return PostgresReading(
        now=now,
        total=_postgres_figures(sample.counters, None),
        size_bytes=sample.size,
        connections=sample.connections,
        connections_active=sample.active,
        max_connections=sample.max_connections,
        statements=sample.statements,
        statements_missing=sample.statements_missing,
    )


def _postgres_figures(counters: Mapping[str, float], seconds: float | None) -> PostgresFigures:
    transactions = counters["commits"] + counters["rollbacks"]
    return PostgresFigures(
        transactions=int(transactions),
        transactions_per_s=_ratio(transactions, seconds),
        rollbacks=int(counters["rollbacks"]),
        rollback_ratio=_ratio(counters["rollbacks"], transactions),
        cache_hit_ratio=_ratio(counters["blocks_hit"], counters["blocks_hit"] + counters["blocks_read"]),
        **{key: int(counters[key]) for key in ("rows_read", "rows_written", "temp_bytes", "deadlocks")},
    )


TRAFFIC = ("transactions", "queries", "received_bytes", "sent_bytes", "total_query_ms", "total_wait_ms")


def _pgbouncer(before: Sample | None, after: Sample) -> PgBouncerReading:
    if after.pgb is None:
        return PgBouncerReading(None, None, None, None, None, None, None, None)
    seconds, now, counters = _seconds(before, after, "pgb"), None, _traffic(after.pgb)
    if before and before.pgb and seconds:
        between = _difference(_traffic(before.pgb), counters)
        now = _pgbouncer_figures(between, seconds) if between else None
    pools = after.pgb.pools

    def total(key: str) -> int:
        return sum(row[key] or 0 for row in pools)

    return PgBouncerReading(
        now=now,
        total=_pgbouncer_figures(counters, None),
        clients_active=total("clients_active"),
        clients_waiting=total("clients_waiting"),
        longest_wait_s=max((row["longest_wait_s"] for row in pools), default=0.0),
        servers=total("servers"),
        servers_active=total("servers_active"),
        pool_size=total("pool_size"),
    )


def _traffic(sample: PoolerSample) -> dict[str, float]:
    return {key: sum(row[key] for row in sample.traffic) for key in TRAFFIC}


def _pgbouncer_figures(counters: Mapping[str, float], seconds: float | None) -> PgBouncerFigures:
    c = counters
    return PgBouncerFigures(
        transactions=int(c["transactions"]),
        queries=int(c["queries"]),
        queries_per_s=_ratio(c["queries"], seconds),
        received_bytes=int(c["received_bytes"]),
        received_bytes_per_s=_ratio(c["received_bytes"], seconds),
        sent_bytes=int(c["sent_bytes"]),
        sent_bytes_per_s=_ratio(c["sent_bytes"], seconds),
        query_ms=_ratio(c["total_query_ms"], c["queries"]),
        wait_ms=_ratio(c["total_wait_ms"], c["transactions"]),
    )


def _difference(earlier: Mapping[str, float], later: Mapping[str, float]) -> dict[str, float] | None:
    """What was counted since; None when counting began anew."""
    between = {key: later[key] - earlier[key] for key in later}
    return None if min(between.values()) < 0 else between


def _ratio(part: float, whole: float | None) -> float | None:
    return round(part / whole, 4) if whole else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
