"""What an examination finds, as it is in JSON: docs/health.md explains it, docs/health.schema.json is made from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Struct

Verdict = Literal["healthy", "degraded", "unhealthy", "stopped", "unknown"]
SEVERITY: dict[Verdict, int] = {"healthy": 0, "degraded": 1, "unknown": 2, "stopped": 3, "unhealthy": 4}

Remedy = Literal["", "start", "resume", "restart", "settle", "reload", "unpause", "recover"]
"""What ``inv dev.heal`` does about it; nothing where only a person can."""


EXPOSURE = "exposure"
"""Name of the check whose value is whether others than this machine can reach a service."""

LOCALHOST = "localhost"
"""Name of the check whether the name ``localhost`` may lead to another program than the application."""


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. A verdict that is not healthy has a cause and a fix."""

    name: str
    """Stable: scripts look for it."""
    verdict: Verdict = "healthy"
    text: str = ""
    """What was found, for people."""
    value: float | str | bool | None = None
    unit: str = ""
    """Of a number: ms, s, bytes, percent or count."""
    limit: float | None = None
    """From where on the number is not healthy."""
    cause: str = ""
    fix: str = ""
    remedy: Remedy = ""
    upstream: bool = False
    """Whether a service that this one depends on may be what is wrong."""

    @property
    def well(self) -> bool:
        return self.verdict == "healthy"


def slow(passed: bool, cause: str, fix: str) -> dict[str, Any]:
    """The part of a check that passed a threshold: it works, but not as it should."""
    return {"verdict": "degraded", "cause": cause, "fix": fix} if passed else {}


class ServiceHealth(Struct, frozen=True, kw_only=True):
    """One service."""

    service: str
    """``db``, ``pgb`` or ``api``."""
    name: str
    address: str
    verdict: Verdict
    cause: str = ""
    fix: str = ""
    remedy: Remedy = ""
    because_of: str | None = None
    """The name of the service that is to blame."""
    pid: int | None = None
    uptime_s: int | None = None
    restarts: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    checks: list[Check] = []

    def check(self, name: str) -> Check | None:
        """The check of this name, if it was made."""
        return next((check for check in self.checks if check.name == name), None)


class Health(Struct, frozen=True, kw_only=True):
    """The whole stack at one moment."""

    verdict: Verdict
    environment: str
    at: str
    """ISO 8601, UTC."""
    seconds: float
    """How long the examination took."""
    services: list[ServiceHealth]
    endpoints: dict[str, str]

    def service(self, label: str) -> ServiceHealth:
        return next(service for service in self.services if service.service == label)


def worst(checks: Iterable[Check]) -> Check:
    """The check that explains the others: of the worst ones the first, since checks go from the root up."""
    return max(checks, key=lambda check: SEVERITY[check.verdict], default=Check(name="none"))


def together(services: list[ServiceHealth]) -> Verdict:
    """The verdict on a stack: stopped only when all of it is, unhealthy when a part of it is."""
    verdicts = {service.verdict for service in services}
    if verdicts == {"stopped"}:
        return "stopped"
    if verdicts & {"unhealthy", "stopped"}:
        return "unhealthy"
    return max(verdicts, key=lambda verdict: SEVERITY[verdict], default="unknown")
