"""How a service's process fares: what the engine says of it, crashes, memory, and the settings it runs with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from devstack import console
from devstack.health.records import EXPOSURE, Check, Verdict, slow
from devstack.host import PortHolder
from devstack.runtimes import Crash, ServiceState, Usage
from devstack.services import Service
from devstack.services.configuration import sentence
from devstack.stack import Stack

FLAPPING = 300
"""Seconds since the last crash for which several of them are worth a word."""


class Process(Struct, frozen=True):
    """What is known of a service's process; usage and crashes are None where they could not be asked."""

    state: ServiceState
    usage: Usage | None
    crashes: list[Crash] | None
    """Since it was last made ready by a command."""

    @property
    def up(self) -> float:
        """Seconds since its start."""
        return max(0.0, time.time() - self.state.started)


def memory_limit(stack: Stack, service: Service) -> int:
    """Bytes that a service is meant to stay within."""
    section: Any = getattr(stack.settings, service.label)
    return int(section.memory_mb) << 20


def check_process(stack: Stack, service: Service, process: Process) -> Check:
    """Whether it runs, and if not, what the engine and its log say of that."""
    state = process.state
    if process.usage and process.usage.frozen:
        return _frozen(state, "unhealthy", f"its process {state.pid} is frozen (SIGSTOP)", [state.pid])
    if state.running and process.usage and process.usage.frozen_below:
        pids = " ".join(map(str, process.usage.frozen_below))
        return _frozen(state, "degraded", f"a part of it is frozen (SIGSTOP): pid {pids}", process.usage.frozen_below)
    if state.running and process.usage and process.usage.frozen_helpers:
        pids = " ".join(map(str, process.usage.frozen_helpers))
        cause = f"what restarts it when its source changes is frozen (SIGSTOP): pid {pids}"
        return _frozen(state, "degraded", cause, process.usage.frozen_helpers)
    if state.running:
        up = console.duration(int(process.up)).replace(".00", "")
        return Check(name="process", value=state.status, text=f"{state.status}, pid {state.pid}, up {up}")
    if state.status == "stopping":
        fix = f"inv {service.label}.start, once it has"
        return Check(name="process", verdict="stopped", value=state.status, cause="it is stopping", fix=fix)
    return _stopped(stack, service) if state.status == "stopped" else _failed(stack, service, state)


def _frozen(state: ServiceState, verdict: Verdict, cause: str, pids: Iterable[int]) -> Check:
    """Return the check of a service some of whose processes a signal has stopped."""
    fix = f"inv dev.heal, or: kill -CONT {' '.join(map(str, pids))}"
    return Check(name="process", verdict=verdict, value=state.status, cause=cause, fix=fix, remedy="resume")


def _stopped(stack: Stack, service: Service) -> Check:
    cause, fix = "it is stopped", f"inv {service.label}.start"
    if holder := _foreign_holder(stack, service):
        cause, fix = f"{cause}, and {holder}", f"end that, or set {service.label}.port; then inv dev.up"
    elif service is stack.db and not stack.db.data_is_there():
        cause = f"{cause}, and there are no data at {stack.db.place}"
        fix = "inv db.start makes an empty database; data that were there must be put back before"
    return Check(name="process", verdict="stopped", value="stopped", cause=cause, fix=fix, remedy="start")


def _foreign_holder(stack: Stack, service: Service) -> PortHolder | None:
    """Who keeps a service from its port; one that an earlier run of this stack left behind is ended at the start."""
    holder = stack.context.host.port_holder(service.bind, service.port)
    return holder if holder and holder.stack != str(stack.paths.state) else None


def _failed(stack: Stack, service: Service, state: ServiceState) -> Check:
    log = stack.context.log_tail(service.name, 15)
    said = [line.strip()[:160] for line in log if line.strip()]
    last = said[-1] if said else ""
    if last.endswith("database system is shut down"):  # why is further up
        last = next((line for line in reversed(said) if "FATAL" in line or "PANIC" in line), last)
    cause = f"it is {state.status}" + (f" ({state.detail})" if state.detail else "")
    fix = service.hint(log)
    if holder := _foreign_holder(stack, service):
        cause, fix = f"{cause}, and {holder}", f"end that, or set {service.label}.port; then inv dev.up"
    return Check(
        name="process",
        verdict="unhealthy",
        value=state.status,
        cause=f"{cause}; its last words: {last}" if last else cause,
        fix=fix,
        remedy="start",
        upstream=True,
    )


def check_run(stack: Stack, service: Service, process: Process) -> list[Check]:
    """How a running one fares; nothing for one that does not run."""
    if not process.state.running:
        return []
    checks = [_settings(stack, service), _exposure(stack, service)]
    if process.crashes is not None:
        checks.append(_restarts(stack, service, process.crashes))
    if process.usage:
        checks.append(_memory(stack, service, process.usage))
    return checks


def _settings(stack: Stack, service: Service) -> Check:
    differences = stack.differences(service)
    return Check(
        name="settings",
        text="runs with the settings as they are",
        **slow(
            differences != [],
            f"it runs with other settings than there are now{sentence(differences)}",
            f"inv {service.label}.start restarts it with those",
        ),
    )


def _exposure(stack: Stack, service: Service) -> Check:
    """Say who can reach it: nothing is wrong with a service that is open, but nobody should find out by chance."""
    exposure = stack.settings.exposure(service.label)
    return Check(name=EXPOSURE, text=exposure or "listens on loopback alone", value=bool(exposure))


def _restarts(stack: Stack, service: Service, crashes: list[Crash]) -> Check:
    limit, count = stack.settings.health.restarts, len(crashes)
    ago = time.time() - crashes[-1].when if crashes else 0.0
    return Check(
        name="restarts",
        text=f"{count} since its start, the last one {console.duration(ago)} ago" if crashes else "none",
        value=count,
        unit="count",
        limit=limit,
        **slow(
            count >= limit and ago < FLAPPING,
            f"it came back from {count} crashes, the last one {console.duration(ago)} ago"
            f" ({crashes[-1].how if crashes else ''})",
            f"inv {service.label}.logs shows why",
        ),
    )


def _memory(stack: Stack, service: Service, usage: Usage) -> Check:
    allotted = memory_limit(stack, service)
    limit = allotted * stack.settings.health.memory_percent // 100
    text = f"{console.size(usage.memory)} of {console.size(allotted)}"
    return Check(
        name="memory",
        text=text,
        value=usage.memory,
        unit="bytes",
        limit=limit,
        **slow(
            usage.memory > limit,
            f"it uses {text} of memory",
            f"inv metrics shows its use; {service.label}.memory_mb is what it is meant to stay within",
        ),
    )
