"""Which runtime an environment runs on: chosen once, then recorded."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from devstack.errors import StackError, UsageError
from devstack.host import Host
from devstack.paths import Paths
from devstack.runtimes import Runtime
from devstack.runtimes.native import Native
from devstack.settings import Settings
from devstack.shell import Command, sh

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 5.0
"""Seconds that an engine has to say that it works."""


class Engine(NamedTuple):
    """A container engine: the question that it answers only if it really works, and how it is started."""

    name: str
    program: str
    title: str
    alive: Command
    start: str


ENGINES = (
    Engine("apple", "container", "Apple container", sh("container system status"), "container system start"),
    Engine("docker", "docker", "Docker", sh("docker version --format '{{.Server.Version}}'"), "start Docker's daemon"),
    Engine("podman", "podman", "Podman", sh("podman info --format '{{.Version.Version}}'"), "see `podman info`"),
)
"""In the order in which they are tried; then native, which needs none."""


def recorded(paths: Paths) -> str:
    """The runtime that this environment was started on first; empty before that."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return str(msgspec.json.decode(paths.choices.read_bytes(), type=dict).get("runtime", ""))
    return ""


def choose(settings: Settings, paths: Paths, environ: Mapping[str, str]) -> str:
    """The runtime of an environment.

    :raises UsageError: another one is asked for than the environment's data are on.
    """
    wanted, was = settings.stack.runtime, recorded(paths)
    if was and wanted not in ("auto", was):
        raise UsageError(
            f"this environment runs on {was}, not on {wanted}",
            why=f"stack.runtime is {wanted}, from {settings.origin('stack.runtime')}; its data are on {was}",
            fix=[
                f"move it with its data: INVOKE_STACK_RUNTIME=auto inv dev.move --to {wanted}",
                "or have another environment there: NV_ENV=other inv dev.up",
            ],
        )
    if was or wanted != "auto":
        return was or wanted
    return next((engine.name for engine in ENGINES if not problem(engine, environ)), "native")


def problem(engine: Engine, environ: Mapping[str, str]) -> str:
    """Why an engine can't be used; empty if it can."""
    if shutil.which(engine.program, path=environ.get("PATH")) is None:
        return "not installed"
    try:
        answer = subprocess.run(
            ["/bin/sh", "-c", engine.alive],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            env=dict(environ),
        )
    except subprocess.TimeoutExpired:
        return f"did not answer within {PATIENCE:g} s"
    lines = (answer.stderr or answer.stdout).strip().splitlines()
    return "" if answer.returncode == 0 else (lines[-1] if lines else f"exit code {answer.returncode}")


def check(name: str, environ: Mapping[str, str]) -> None:
    """Before the first start on an engine that was asked for by name.

    :raises StackError: it is not installed, or does not answer.
    """
    engine = next((engine for engine in ENGINES if engine.name == name), None)
    if engine and (why := problem(engine, environ)):
        raise StackError(
            f"{engine.title} can't be used",
            why=why,
            fix=[engine.start, "or let the stack take what there is: stack.runtime: auto"],
        )


def make(name: str, settings: Settings, paths: Paths, host: Host) -> Runtime:
    """The dialect of a runtime."""
    if name == "native":
        return Native(paths, settings.templates, sys.executable, host.account, host.is_root, os.environ)
    from devstack.runtimes.apple import Apple
    from devstack.runtimes.docker import Docker, Podman

    dialects: dict[str, Callable[..., Runtime]] = {"apple": Apple, "docker": Docker, "podman": Podman}
    return dialects[name](paths, network=settings.service_name("net"))
