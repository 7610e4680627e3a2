"""What is measured, for Prometheus and for /health/detailed."""

from __future__ import annotations

import math
from collections import deque

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from .database import Database

CONTENT_TYPE = CONTENT_TYPE_LATEST
WINDOW = 1000
"""How many recent requests the percentiles are taken from."""
PROBES = ("/health", "/health/detailed", "/metrics")
"""Paths that ask about the service rather than use it: they would hide its own latency."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The measurements of one process: with several workers, each answers for itself."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "http_requests", "Requests answered.", ["method", "path", "status"], registry=self.registry
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "Time until the last byte.",
            ["method", "path"],
            registry=self.registry,
        )
        self.memories = Counter("memories", "Memories by what was done.", ["operation"], registry=self.registry)
        for operation in ("created", "deleted", "searched"):
            self.memories.labels(operation)
        for name, what, read in (
            ("active", "Connections lent to a request.", lambda: database.active),
            ("idle", "Open connections that wait.", lambda: database.idle),
            ("max", "Connections there may be.", lambda: database.size),
        ):
            gauge = Gauge(f"db_pool_{name}_connections", what, registry=self.registry)
            gauge.set_function(read)
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count one request. ``path`` is the route's template: a series for each id would never end."""
        known = method if method in METHODS else "OTHER"
        self._requests.labels(known, path, str(status)).inc()
        self._durations.labels(known, path).observe(seconds)
        if path not in PROBES:
            self._recent.append(seconds)

    def latency_ms(self, percent: float) -> float | None:
        """The percentile of the recent requests in milliseconds (nearest rank), None before the first one."""
        durations = sorted(self._recent)
        if not durations:
            return None
        rank = max(1, math.ceil(len(durations) * percent / 100))
        return round(durations[rank - 1] * 1000, 3)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
