"""The tunnel to a stack on another host: started, shown, stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from invoke import Context
from msgspec import Meta, Struct

from devstack import console, trust
from devstack.errors import FAILED, StackError
from tasks import forwarding
from tasks.runstate import state_of

if TYPE_CHECKING:
    from devstack.remote.tunnel import Forward, Tunnel
    from devstack.settings import Settings

NAMES = {"db": "PostgreSQL", "pgb": "PgBouncer", "api": "API"}


def start(c: Context, *, as_json: bool) -> int:
    """Start it, if it is not there."""
    from devstack.remote import tunnel as tunnels
    from devstack.remote.link import fabrics_of

    settings, file = _where(c)
    found = tunnels.read(file)
    if found and found.host != settings.stack.host:
        raise StackError(
            f"a tunnel to {found.host} is there",
            why=f"this is for {settings.stack.host}",
            fix=f"NV_HOST={found.host} inv remote.tunnel --stop",
        )
    began = found is None
    if found is None:
        logs = settings.root / settings.stack.log_dir
        trust.check_links(logs, "logs", setting="stack.log_dir", root=settings.root)
        found = tunnels.start(
            settings.stack.host,
            fabrics_of(c.config),
            _forwards(c, settings),
            file=file,
            log=logs / "tunnel.log",
            timeout=settings.remote.connect_timeout,
            silence=settings.remote.silence,
        )
    return _show(found, as_json=as_json, word="open" if began else "already open")


def status(c: Context, *, as_json: bool) -> int:
    """Say how it is; 1 if it is not up."""
    from devstack.remote import tunnel as tunnels

    settings, file = _where(c)
    found = tunnels.read(file)
    if found is None:
        if as_json:
            console.data({"host": settings.stack.host, "up": False, "forwards": []})
        else:
            console.out(f"no tunnel to {settings.stack.host}: inv remote.tunnel")
        return FAILED
    return _show(found, as_json=as_json, word="open")


def stop(c: Context) -> int:
    """Close it."""
    from devstack.remote import tunnel as tunnels

    settings, file = _where(c)
    if found := tunnels.read(file):
        tunnels.stop(found, file)
        console.out(f"the tunnel to {found.host} is closed")
    else:
        console.out(f"no tunnel to {settings.stack.host}")
    return 0


def _show(found: Tunnel, *, as_json: bool, word: str) -> int:
    if as_json:
        console.data({name: value for name, value in msgspec.to_builtins(found).items() if name != "created"})
        return 0 if found.up else FAILED
    if not found.up:
        console.out(
            f"the tunnel to {found.host} is down for {console.duration(time.time() - found.since)}: {found.why}"
        )
        console.out("it goes on trying to connect")
        for line in found.fix:
            console.out(f"  {line}")
        return FAILED
    console.out(f"the tunnel to {found.host} is {word} for {console.duration(time.time() - found.since)}")
    for one in found.forwards:
        there = "" if one.there == one.here else f"  (there {one.there})"
        console.out(f"  {NAMES[one.service]:<10}  127.0.0.1:{one.here}{there}")
    return 0


def _where(c: Context) -> tuple[Settings, Path]:
    settings = forwarding.hosted(c.config)
    return settings, forwarding.tunnel_of(settings, state_of(c).environ)


def _forwards(c: Context, settings: Settings) -> list[Forward]:
    """The ports of the environment; on the host, those of one other than dev were chosen there."""
    from devstack.ports import MAIN
    from devstack.remote.tunnel import Forward

    here = _ports_here(c, settings)
    there = here if settings.stack.env == MAIN else ports_there(c, settings.stack.env)
    return [Forward(service, here[service], there[service]) for service in NAMES]


def _ports_here(c: Context, settings: Settings) -> dict[str, int]:
    """Return the ports to listen on, by service. The host has no say in it: a program here may take for its own what
    listens on a port that the host has chosen.

    :raises StackError: no ports are free.
    """
    from devstack import ports
    from devstack.paths import registry_of
    from devstack.registry import Registry
    from devstack.remote.variables import through

    environ = state_of(c).environ
    paths, host = forwarding.places_of(settings, environ)
    xdg = {name: value for name, value in environ.items() if name.startswith("XDG_")}
    registry = Registry(registry_of(Path.home(), xdg, host.uid), host)
    registry.check_closed(settings.root)
    settled = ports.settle(through(settings, {}), paths, host, registry, keep=False)
    return {service: getattr(settled, service).port for service in NAMES}


class _Listed(Struct):
    """An environment in the host's answer to ``dev.list``."""

    name: str
    ports: dict[str, Annotated[int, Meta(ge=1, le=65535)]]


class _List(Struct):
    environments: list[_Listed]


def ports_there(c: Context, env: str) -> dict[str, int]:
    """Return the ports of an environment on the host, by service.

    :raises StackError: there is none of this name.
    """
    found = forwarding.json_of(c.config, ["dev.list", "--json"])
    try:
        known = {one.name: one.ports for one in msgspec.convert(found, _List).environments}
    except msgspec.ValidationError as error:
        raise forwarding.unexpected(c.config, f"dev.list: {error}") from None
    if env not in known:
        raise StackError(f"there is no environment {env} on the host", fix=f"inv dev.up -e {env}")
    if not NAMES.keys() <= known[env].keys():
        raise forwarding.unexpected(c.config, f"dev.list does not have the ports of {env}")
    return known[env]
