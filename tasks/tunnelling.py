"""The tunnel to a stack on another host: started, shown, stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from invoke import Context

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
    """The ports of the environment; those of one other than dev were chosen on the host."""
    from devstack.remote.tunnel import Forward

    ports = {service: getattr(settings, service).port for service in NAMES}
    if settings.stack.env != "dev":
        ports = forwarding.ports(c.config, settings.stack.env)
    return [Forward(service, port, port) for service, port in ports.items()]
