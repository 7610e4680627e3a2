"""Root cause first: of several faults the one that the others follow from."""

from __future__ import annotations

from msgspec.structs import replace

from devstack.health.records import Check, ServiceHealth

NOT_WELL = ("unhealthy", "stopped", "unknown")
EXPLAINING = ("config", "credentials", "pool ", "settings")
"""What the names of checks begin with that are only degraded by themselves, but explain why nothing gets through."""
EXPLAINED = ("login", "console", "backend", "http", "answer", "memory provider")


def blame(services: list[ServiceHealth]) -> list[ServiceHealth]:
    """Services in the order of start, each with its own fault or the service that is to blame."""
    judged: list[ServiceHealth] = []
    for service in services:
        root = next((s for s in judged if s.verdict in NOT_WELL and s.because_of is None), None)
        bad = [check for check in service.checks if check.verdict == "unhealthy"]
        if service.remedy == "resume":
            pass  # its own fault, whatever else there is
        elif bad and root and all(check.upstream for check in bad):
            state = "stopped" if root.verdict == "stopped" else "not healthy"
            cause = f"{root.name} is {state}"
            service = replace(service, because_of=root.name, cause=cause, fix="", remedy="")
        elif bad and not root and (reason := _explanation(service, bad)):
            if reason.name == "settings":  # likely, but not certainly
                service = replace(service, cause=f"{reason.cause}; {service.cause}", fix=reason.fix)
            else:
                service = replace(service, cause=reason.cause, fix=reason.fix, remedy=reason.remedy)
        judged.append(service)
    return judged


def _explanation(service: ServiceHealth, bad: list[Check]) -> Check | None:
    """A drift or a saturated pool, when all that is bad is that nothing gets through."""
    found = (check for check in service.checks if check.verdict == "degraded" and not check.upstream)
    explaining = next((check for check in found if check.name.startswith(EXPLAINING)), None)
    return explaining if all(check.name in EXPLAINED for check in bad) else None
