"""Examine a whole stack: all probes at once, then who is to blame."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone

from msgspec.structs import replace

from devstack.errors import StackError
from devstack.health.application import probe_application, probe_localhost
from devstack.health.blame import blame
from devstack.health.database import probe_data, probe_database, probe_disk
from devstack.health.findings import Findings, Probe, run_all
from devstack.health.pooler import probe_backend, probe_configuration, probe_console
from devstack.health.process import Process, check_process, check_run, memory_limit
from devstack.health.records import Check, Health, Remedy, ServiceHealth, together, worst
from devstack.runtimes import Crash, ServiceState, Usage
from devstack.services import Service
from devstack.settings import database_url, reachable_address
from devstack.stack import Stack


def examine(stack: Stack) -> Health:
    """Look at everything at once; takes at most ``health.timeout`` seconds and a little, whatever hangs."""
    began, at = time.monotonic(), datetime.now(timezone.utc)
    _import_clients()
    try:
        states = stack.context.states(stack.names)
    except StackError as error:
        remedy: Remedy = "resume" if stack.context.engine_stopped() else ""
        services = [_unknown(service, error, remedy) for service in stack.services]
    else:
        services = blame(_examine(stack, states))
    return Health(
        verdict=together(services),
        environment=stack.settings.stack.env,
        at=at.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 3),
        services=services,
        endpoints=_endpoints(stack),
    )


def _import_clients() -> None:
    """Before the clock of any probe runs: an import in one thread delays what another one measures."""
    import http.client  # noqa: F401

    import psutil  # noqa: F401
    import psycopg2  # noqa: F401


def _examine(stack: Stack, states: Mapping[str, ServiceState]) -> list[ServiceHealth]:
    usage: dict[str, Usage] = {}
    crashes: list[dict[str, list[Crash]]] = []

    def ask_engine(_: Findings) -> None:
        usage.update(stack.context.usage(states))
        crashes.append(stack.crashes())

    plan = [("", ask_engine), *_plan(stack, states)]
    found = run_all([probe for _, probe in plan], stack.settings.health.timeout)
    services = []
    for service in stack.services:
        mine = [findings for (name, _), findings in zip(plan, found, strict=True) if name == service.name]
        since = stack.ready_since(service)
        recent = [crash for crash in crashes[0].get(service.name, []) if crash.when > since] if crashes else None
        process = Process(states[service.name], usage.get(service.name), recent)
        answered = [check for findings in mine for check in list(findings.checks)]
        answered += [_hanging(stack, service, findings.doing, answered) for findings in mine if findings.doing]
        checks = [check_process(stack, service, process), *answered, *check_run(stack, service, process)]
        services.append(_judge(stack, service, process, checks))
    return services


def _plan(stack: Stack, states: Mapping[str, ServiceState]) -> list[tuple[str, Probe]]:
    """The probes of what runs, each with the name of its service."""
    db, pgb, api = stack.db, stack.pgb, stack.api
    probes: dict[str, list[Probe]] = {
        db.name: [probe_database(db)],
        pgb.name: [probe_configuration(pgb), probe_console(pgb), probe_backend(pgb)],
        api.name: [probe_application(api), probe_localhost(api, states[api.name].pid)],
    }
    running = [(name, probe) for name, some in probes.items() if states[name].running for probe in some]
    data: list[Probe] = [probe_data(stack)]
    if states[db.name].running or not stack.context.runtime.contained:
        data.append(probe_disk(db, states[db.name].pid))
    return [*((db.name, probe) for probe in data), *running]


def _hanging(stack: Stack, service: Service, doing: str, answered: list[Check]) -> Check:
    """What a probe still waits for. A service that has answered what matters works without the rest."""
    works = any(check.name in ("query", "http") and check.well for check in answered)
    return Check(
        name="answer",
        verdict="degraded" if works else "unhealthy",
        cause=f"it hangs: waited {stack.settings.health.timeout:g} s for {doing}",
        fix=f"inv {service.label}.logs shows what it does",
        remedy="restart" if service is stack.api and not works else "",
        upstream=service is not stack.db,
    )


def _judge(stack: Stack, service: Service, process: Process, checks: list[Check]) -> ServiceHealth:
    reason, state = worst(checks), process.state
    undone = next((c.cause for c in checks if c.remedy != "resume" and c.verdict == "unhealthy"), "")
    if frozen := next((check for check in checks if check.remedy == "resume"), None):
        # what a frozen process leaves undone tells more than that it is frozen, but is no reason to restart it
        reason = replace(frozen, verdict=reason.verdict, cause="; ".join(filter(None, [frozen.cause, undone])))
    elif process.usage and process.usage.traced and undone:
        cause = f"a debugger holds it (pid {' '.join(map(str, process.usage.traced))}); {undone}"
        fix = "let it go on in the debugger, or detach that: nothing here resumes it"
        reason = replace(reason, cause=cause, fix=fix, remedy="")
    return ServiceHealth(
        service=service.label,
        name=service.name,
        address=_address(service),
        verdict=reason.verdict,
        cause=reason.cause,
        fix=reason.fix,
        remedy=reason.remedy,
        pid=state.pid or None,
        uptime_s=round(process.up) if state.started else None,
        restarts=len(process.crashes) if process.crashes is not None else None,
        memory_bytes=process.usage.memory if process.usage else None,
        memory_limit_bytes=memory_limit(stack, service),
        checks=checks,
    )


def _unknown(service: Service, error: StackError, remedy: Remedy) -> ServiceHealth:
    return ServiceHealth(
        service=service.label,
        name=service.name,
        address=_address(service),
        verdict="unknown",
        cause=f"{error.what}: {error.why}",
        fix="; ".join(error.fix),
        remedy=remedy,
    )


def _address(service: Service) -> str:
    return service.address.removeprefix("http://")


def _endpoints(stack: Stack) -> dict[str, str]:
    """Where a person goes; no password in it."""
    s = stack.settings
    found = {"api": stack.api.address, "health": stack.api.address + s.api.health_path}
    if s.api.metrics_path:
        found["metrics"] = stack.api.address + s.api.metrics_path
    url = database_url("postgresql", s.db.user, "***", reachable_address(s.db.bind), s.db.port, s.db.name)
    return {**found, "database": url}
