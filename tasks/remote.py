"""A stack on another host"""

from __future__ import annotations

from invoke import Context, Exit, task

from devstack import console
from devstack.errors import FAILED, UsageError
from tasks import diagnosis, forwarding, session, tunnelling
from tasks.runstate import state_of


@task(help={"json": "the answer as JSON"})
def check(c: Context, json: bool = False) -> None:
    """Show what the host has and lacks."""
    from devstack.remote.check import survey

    session.say_wrong(state_of(c), forwarding.hosted(c.config))
    with forwarding.remote(c.config) as host:
        code = diagnosis.show_system(survey(host), as_json=json, where=f"on {host.link.host}")
    if code:
        raise Exit(code=code)


@task
def bootstrap(c: Context) -> None:
    """Send the project, and install what it needs there."""
    with forwarding.remote(c.config) as host:
        if code := host.set_up():
            raise Exit(code=code)
        console.out(f"{host.link.host} is set up: inv dev.up")


@task(auto_shortflags=False, help={"fingerprint": "of the host's key, as ssh-keygen -l shows it: SHA256:…"})
def accept(c: Context, fingerprint: str) -> None:
    """Take a host's key for known."""
    from devstack.remote.link import accept_key

    settings = forwarding.hosted(c.config)
    file, name = accept_key(settings.stack.host, c.config, fingerprint, timeout=settings.remote.connect_timeout)
    console.out(f"{name} is known now, in {file}" if file else f"{name} was known already")


@task(
    auto_shortflags=False,
    help={
        "status": "say whether it is up, and change nothing",
        "stop": "close it",
        "json": "the answer as JSON",
    },
)
def tunnel(c: Context, status: bool = False, stop: bool = False, json: bool = False) -> None:
    """Have the stack's ports on loopback here."""
    if status and stop:
        raise UsageError("--status and --stop exclude each other", fix="give one of them")
    session.say_wrong(state_of(c), forwarding.hosted(c.config))
    code = (
        tunnelling.status(c, as_json=json)
        if status
        else tunnelling.stop(c)
        if stop
        else tunnelling.start(c, as_json=json)
    )
    if code:
        raise Exit(code=FAILED)
