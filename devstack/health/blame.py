"""Root cause first: of several faults the one that the others follow from."""

from __future__ import annotations

from msgspec.structs import replace

from devstack.health.records import Check, ServiceHealth

NOT_WELL = ("unhealthy", "stopped", "unknown")
EXPLAINING = ("config", "credentials", "pool ")
"""What the names of checks begin with that are only degraded by themselves, but explain why nothing gets through."""


def blame(services: list[ServiceHealth]) -> list[ServiceHealth]:
    """Services in the order of start, each with its own fault or the service that is to blame."""
    judged: list[ServiceHealth] = []
    for service in services:
        root = next((s for s in judged if s.verdict in NOT_WELL and s.because_of is None), None)
        if service.verdict == "unhealthy" and _follows(service):
            if root:
                state = "stopped" if root.verdict == "stopped" else "not healthy"
                cause = f"{root.name} is {state}"
                service = replace(service, because_of=root.name, cause=cause, fix="", remedy="")
            elif reason := _explanation(service):
                service = replace(service, cause=reason.cause, fix=reason.fix, remedy=reason.remedy)
        judged.append(service)
    return judged


def _follows(service: ServiceHealth) -> bool:
    """Whether everything that is wrong with it may come from somewhere else."""
    return all(check.upstream for check in service.checks if check.verdict == "unhealthy")


def _explanation(service: ServiceHealth) -> Check | None:
    """A drift or a saturated pool, when the way through is closed and nobody before is to blame."""
    return next(
        (check for check in service.checks if check.verdict == "degraded" and check.name.startswith(EXPLAINING)), None
    )
