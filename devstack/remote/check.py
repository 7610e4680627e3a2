"""What a host has and lacks, before anything is set up there."""

from __future__ import annotations

import re
import time
from typing import Annotated

from msgspec import Meta, Struct

from devstack import console
from devstack.remote.project import Place, Remote
from devstack.system import Fact

ENGINES = ("container", "docker", "podman")
PROGRAMS = (*ENGINES, "pgbouncer", "curl", "pg_config", "postgres")
DISK = 2 << 30
"""Bytes that the packages, a PostgreSQL and a first database take, with room to move."""


class Survey(Struct):
    """Inventory of a host, as its agent answers it."""

    system: str
    machine: str
    python: tuple[str, str]
    """Its version, and its path."""
    base: str
    home: str
    free: Annotated[int, Meta(ge=0, le=1 << 62)]
    """Bytes on the disk."""
    writable: bool
    programs: dict[str, str]
    """Paths of programs by their names; empty for one that is not there."""
    taken: list[int]
    """Ports on which something listens."""
    sent: str
    """Where the project came from; empty if it was not sent yet."""


def survey(remote: Remote) -> list[Fact]:
    """The connection, the machine, and the parts that a stack is made of.

    :raises StackError: the host does not answer, or has no Python.
    """
    settings, link = remote.settings, remote.link
    ports = {service: getattr(settings, service).port for service in ("db", "pgb", "api")}
    with remote.talk() as talk:
        began = time.monotonic()
        talk.ask("survey", dir=remote.folder, ports=list(ports.values()), programs=PROGRAMS)
        found = talk.answer_as(Survey)
        seconds = time.monotonic() - began
    connection = link.connection
    version = str(link.transport.remote_version).removeprefix("SSH-2.0-")
    return [
        Fact("connection", "host", f"{connection.user}@{connection.host} port {connection.port}", True),
        Fact("connection", "server", version),
        Fact("connection", "an answer", f"{seconds * 1000:.0f} ms"),
        *_machine(found),
        *_program(remote, found),
        *_parts(settings.stack.runtime, found),
        *(_port(service, port, found) for service, port in ports.items()),
    ]


def _machine(found: Survey) -> list[Fact]:
    version, path = found.python
    numbers = re.match(r"(\d{1,3})\.(\d{1,3})", version, re.ASCII)
    new = numbers is not None and (int(numbers[1]), int(numbers[2])) >= (3, 10)
    room = found.free >= DISK
    return [
        Fact("machine", "system", f"{found.system}, {found.machine}"),
        Fact("machine", "Python", f"{version} at {path}", new, "" if new else "install 3.10 or newer there", True),
        Fact(
            "machine",
            "disk",
            f"{console.size(found.free)} free",
            room,
            "" if room else f"make room: a first start takes about {console.size(DISK)}",
            number=found.free,
        ),
    ]


def _program(remote: Remote, found: Survey) -> list[Fact]:
    facts = []
    sent = found.sent
    writable = found.writable or bool(sent)
    where = f"{found.base}{f', sent from {sent}' if sent else ', not there yet'}"
    facts.append(
        Fact("project", "folder", where, writable, "" if writable else "set remote.dir to a folder of yours", True)
    )
    program = remote.program(Place(found.base, found.home))[0]
    ready = remote.has(program)
    advice = "" if ready else "inv remote.bootstrap sets it up"
    facts.append(Fact("project", "program", f"{program}{'' if ready else ', not there yet'}", ready, advice, True))
    return facts


def _parts(runtime: str, found: Survey) -> list[Fact]:
    programs = {name: found.programs.get(name, "") for name in PROGRAMS}
    engines = [name for name in ENGINES if programs[name]]
    native = runtime == "native" or (runtime == "auto" and not engines)
    fitting = runtime in ("auto", "native") or bool(programs[{"apple": "container"}.get(runtime, runtime)])
    shown = ", ".join(programs[name] for name in engines) or "none: services run as processes"
    postgres = programs["pg_config"] or programs["postgres"]
    return [
        Fact(
            "parts",
            "engines",
            shown,
            fitting,
            "" if fitting else f"install {runtime} there, or set stack.runtime",
            True,
        ),
        Fact(
            "parts",
            "PgBouncer",
            programs["pgbouncer"] or "not found",
            bool(programs["pgbouncer"]) or not native,
            "" if programs["pgbouncer"] or not native else "inv remote.bootstrap installs it",
            native,
        ),
        Fact("parts", "PostgreSQL", postgres or "not found: that of the Python packages is used"),
    ]


def _port(service: str, port: int, found: Survey) -> Fact:
    taken = port in found.taken
    if not taken:
        return Fact("ports", service, f"{port} free", True)
    value = f"{port} in use: by this stack, or by something else"
    return Fact("ports", service, value, advice="inv dev.status says which")
