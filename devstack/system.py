"""What the stack needs, and what this machine has."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devstack import console, providers
from devstack.errors import StackError

if TYPE_CHECKING:
    from devstack.stack import Stack


@dataclass(frozen=True)
class Fact:
    """One thing about the machine. ``ok`` is None where it can't be right or wrong; ``advice`` mends what is not."""

    topic: str
    name: str
    value: str
    ok: bool | None = None
    advice: str = ""
    needed: bool = False
    """Whether the stack can't start without it."""


def system_information(stack: Stack) -> list[Fact]:
    """Everything worth knowing before a start, or in a report of a problem."""
    return [*_machine(), *_postgres(stack), *_pgbouncer(stack), *_tools(), *_ports(stack), *_settings(stack)]


def _machine() -> list[Fact]:
    import psutil

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage("/")
    return [
        Fact("machine", "system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Fact("machine", "processors", str(os.cpu_count())),
        Fact("machine", "memory", f"{console.size(memory.available)} of {console.size(memory.total)} available"),
        Fact("machine", "disk", f"{console.size(disk.free)} of {console.size(disk.total)} free"),
        Fact("machine", "Python", f"{platform.python_version()} at {sys.executable}"),
        Fact("machine", "user", f"uid {os.getuid()}"),
    ]


def _postgres(stack: Stack) -> list[Fact]:
    facts = []
    taken = False
    for candidate in providers.search_postgres(stack.context, stack.settings):
        programs = candidate.programs
        version = f"PostgreSQL {programs.version}" if programs else ""
        if candidate.problem:
            facts.append(
                Fact(
                    "PostgreSQL",
                    candidate.place,
                    ", ".join(filter(None, [version, candidate.problem])),
                    False,
                )
            )
        else:
            facts.append(Fact("PostgreSQL", candidate.place, f"{version}, {'also fit' if taken else 'taken'}", True))
            taken = True
    if not taken:
        fit = ", ".join(stack.settings.db.extensions)
        facts.append(Fact("PostgreSQL", "in use", f"none with {fit}", False, providers.INSTALL, needed=True))
    return facts


def _pgbouncer(stack: Stack) -> list[Fact]:
    try:
        binary = providers.pgbouncer_binary(stack.settings)
        version = providers.pgbouncer_version(stack.context, binary)
    except StackError as error:
        return [Fact("PgBouncer", "in use", error.what, False, "; ".join(error.fix), needed=True)]
    return [Fact("PgBouncer", str(binary), version, True)]


def _tools() -> list[Fact]:
    facts = []
    for name, use, needed in (
        ("curl", "speaks to the native runtime's supervisor", True),
        ("make", "runs the Makefile", False),
        ("jq", "reads --json in scripts", False),
    ):
        path = shutil.which(name)
        advice = "" if path else f"install {name}: it {use}"
        facts.append(Fact("tools", name, path or "missing", bool(path), advice, needed=needed))
    return facts


def _ports(stack: Stack) -> list[Fact]:
    facts = []
    states = stack.context.states(stack.names)
    for service in stack.services:
        if states[service.name].running:
            facts.append(Fact("ports", str(service.port), f"in use by {service.name}", True))
            continue
        holder = stack.context.host.port_holder(stack.settings.stack.bind, service.port)
        advice = f"end it, or set {service.label}.port" if holder else ""
        facts.append(
            Fact(
                "ports",
                str(service.port),
                str(holder) if holder else f"free, for {service.name}",
                not holder,
                advice,
                bool(holder),
            )
        )
    return facts


def _settings(stack: Stack) -> list[Fact]:
    """The settings that are not what invoke.yaml has."""
    from devstack.settings import FIELDS, SECRETS

    facts = []
    for path, origin in stack.settings.origins.items():
        if origin.endswith("invoke.yaml"):
            continue
        section, _, name = path.partition(".")
        value = getattr(getattr(stack.settings, section), name)
        shown = "***" if path in SECRETS else repr(value)
        assert path in FIELDS
        facts.append(Fact("settings", path, f"{shown} (from {origin})"))
    facts.append(Fact("settings", "state", str(stack.paths.state)))
    return facts
