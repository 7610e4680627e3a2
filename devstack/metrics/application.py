"""What an application says of itself at its ``/metrics``, in Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Sample

REQUESTS = re.compile(r"(^|_)requests$")
DURATIONS = re.compile(r"(^|_)requests?_(duration|latency)_seconds$")
IN_PROGRESS = re.compile(r"(^|_)requests_in_?(progress|flight)$")
POOL = re.compile(r"(^|_)pool_(active|idle|max)_connections$")
PATH_LABELS = ("path", "handler", "route", "endpoint", "path_template")
STATUS_LABELS = ("status", "status_code", "code", "http_status")
"""What the instrumentations of web frameworks call them."""


class Requests(Struct, frozen=True):
    """Counters of the requests that an application answered, without those that only ask about it."""

    started: float
    """When the process that counts was started, in seconds since the epoch; 0 if it does not say."""
    by_class: Mapping[str, float]
    """By the first digit of the status."""
    buckets: Mapping[float, float]
    """How many took at most so many seconds."""

    @property
    def count(self) -> float:
        return sum(self.by_class.values())

    def since(self, earlier: Requests) -> Requests | None:
        """What was counted since; None when it was another process that counted."""
        by_class = {k: v - earlier.by_class.get(k, 0) for k, v in self.by_class.items()}
        buckets = {k: v - earlier.buckets.get(k, 0) for k, v in self.buckets.items()}
        if self.started != earlier.started or min([0, *by_class.values(), *buckets.values()]) < 0:
            return None
        return Requests(self.started, by_class, buckets)

    def quantile(self, share: float) -> float | None:
        """The time in seconds that a share of the requests took at most, interpolated within its bucket as
        Prometheus does (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)."""
        count = self.buckets.get(math.inf, 0)
        if not count:
            return None
        rank, lower, below = share * count, 0.0, 0.0
        for bound, reached in sorted(self.buckets.items()):
            if reached >= rank:
                if bound == math.inf:
                    return lower  # all that is known: it took longer than the last bound
                return lower + (bound - lower) * (rank - below) / (reached - below)
            lower, below = bound, reached
        return lower


class Exposition(Struct, frozen=True):
    """What the application exposes."""

    text: str = ""
    families: frozenset[str] = frozenset()
    requests: Requests | None = None
    """None: it does not count them in a way that is known here."""
    in_progress: float | None = None
    pool: Mapping[str, float] = field(default_factory=dict)
    """``active``, ``idle`` and ``max`` connections of its own pool."""
    missing: str = ""
    """Why its requests are not known."""


def parse(text: str, probes: Collection[str]) -> Exposition:
    """Read an exposition; requests of the paths ``probes`` do not count.

    :raises ValueError: it is not Prometheus' text format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(text))
    pool = {match[2]: _sum(family.samples) for family in families if (match := POOL.search(family.name))}
    in_progress = [_sum(f.samples) for f in families if f.type == "gauge" and IN_PROGRESS.search(f.name)]
    requests = _requests(families, probes)
    return Exposition(
        text=text,
        families=frozenset(family.name for family in families),
        requests=requests,
        in_progress=in_progress[0] if in_progress else None,
        pool=pool,
        missing="" if requests else "it counts no requests by status, as http_requests_total would",
    )


def _requests(families: Iterable[Metric], probes: Collection[str]) -> Requests | None:
    started = 0.0
    by_class: dict[str, float] | None = None
    buckets: dict[float, float] = {}
    for family in families:
        if family.name == "process_start_time_seconds":
            started = _sum(family.samples)
        elif family.type == "counter" and by_class is None and REQUESTS.search(family.name):
            by_class = _by_class(family.samples, probes)
        elif family.type == "histogram" and not buckets and DURATIONS.search(family.name):
            buckets = _buckets(family.samples, probes)
    return None if by_class is None else Requests(started, by_class, buckets)


def _by_class(samples: Iterable[Sample], probes: Collection[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        status = _label(sample, STATUS_LABELS)
        if sample.name.endswith("_total") and _label(sample, PATH_LABELS) not in probes:
            found[status[:1]] = found.get(status[:1], 0) + sample.value
    return found


def _buckets(samples: Iterable[Sample], probes: Collection[str]) -> dict[float, float]:
    found: dict[float, float] = {}
    for sample in samples:
        if sample.name.endswith("_bucket") and _label(sample, PATH_LABELS) not in probes:
            bound = float(sample.labels["le"])
            found[bound] = found.get(bound, 0) + sample.value
    return found


def _label(sample: Sample, names: Iterable[str]) -> str:
    return next((sample.labels[name] for name in names if name in sample.labels), "")


def _sum(samples: Iterable[Sample]) -> float:
    return sum(sample.value for sample in samples)
