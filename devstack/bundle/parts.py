"""What goes into a bundle."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from devstack import __version__, git
from devstack.files import read_regular
from devstack.logs import UNPRINTABLE
from devstack.templates import CHECKOUT

if TYPE_CHECKING:
    from devstack.stack import Stack

PATIENCE = 8.0
"""Seconds that all parts together may take; one that takes longer is left out."""
GIT_SECONDS = 2.0
"""Seconds that Git may take to name the commit."""
LINES = 2_000
"""Of the end of each log."""
LOG_BYTES = 1_000_000
"""Of the end of each log, where its lines are very long."""


class Part(Struct, frozen=True):
    """A file of the bundle on its way: ``collect`` gives its text, or what is to become JSON."""

    name: str
    what: str
    collect: Callable[[], Any]
    free: bool = True
    """Whether anything might be in it, a secret too short to be found for instance."""


def parts_of(stack: Stack) -> Iterator[Part]:
    for name, what, collect, free in (
        ("versions.json", "versions of the stack, its programs and packages", _versions, False),
        ("system.json", "what this machine has, as inv system-info --json", _system, True),
        ("settings.json", "every setting with its origin", _settings, False),
        ("health.json", "health, as inv health --json", _health, True),
        ("services.json", "what runs, since when, and whether as the settings say", _services, True),
    ):
        yield Part(name, what, partial(collect, stack), free)
    for name in stack.names:
        yield Part(f"logs/{name}.log", f"the last {LINES:,} lines of {name}", partial(_service_log, stack, name))
    for file, what in (
        (stack.paths.log / "devstack.log", "every command with its duration and exit code"),
        (stack.paths.log / "supervisord.log", "what Supervisor started, and what ended how"),
        (CHECKOUT / "logs" / "bootstrap.log", "what the package managers said"),
    ):
        yield Part(f"logs/{file.name}", what, partial(tail, file))
    for file in _rendered(stack):
        what = "rendered at the last start"
        yield Part(f"config/{file.relative_to(stack.paths.config)}", what, partial(_config, file))


def _versions(stack: Stack) -> dict[str, Any]:
    import platform
    from importlib.metadata import distributions

    packages = {dist.metadata["Name"]: dist.version for dist in distributions()}
    return {
        "nv-devstack": __version__,
        "checkout": git.version(stack.paths.root, GIT_SECONDS),
        "python": platform.python_version(),
        "postgresql": stack.chosen.postgres_version or None,
        "pgbouncer": stack.chosen.pgbouncer_version or None,
        "packages": dict(sorted(packages.items())),
    }


def _system(stack: Stack) -> list[dict[str, Any]]:
    from devstack.system import system_information

    return [msgspec.to_builtins(fact) for fact in system_information(stack)]


def _settings(stack: Stack) -> list[dict[str, str]]:
    from devstack.system.settings import in_force

    return [{"setting": fact.name, "value": fact.value, "origin": fact.origin} for fact in in_force(stack)]


def _health(stack: Stack) -> Any:
    from devstack.health import examine

    return msgspec.to_builtins(examine(stack))


def _services(stack: Stack) -> list[dict[str, Any]]:
    states = stack.context.states(stack.names)
    crashes, usage = stack.crashes(), stack.context.usage(states)
    return [
        {
            **msgspec.to_builtins(states[service.name]),
            "crashes": [msgspec.to_builtins(crash) for crash in crashes.get(service.name, ())],
            "usage": msgspec.to_builtins(usage[service.name]) if service.name in usage else None,
            "as_the_settings_say": stack.as_set(service),
        }
        for service in stack.services
    ]


def _service_log(stack: Stack, name: str) -> str:
    if file := stack.context.runtime.log_file(name):
        return tail(file)
    return stack.context.probe(stack.context.runtime.logs(name, tail=LINES, follow=False), PATIENCE).text


def tail(file: Path) -> str:
    """The last whole lines of a log: half a line might hold half a secret, which nobody would find.

    :raises OSError: it can't be read.
    """
    with file.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_BYTES))
        lines = log.read().decode(errors="replace").splitlines(keepends=True)
    if size > LOG_BYTES or file.with_name(f"{file.name}.1").exists():
        lines = lines[1:]  # it may have begun before, also in the file that was rotated away
    if lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
    return "".join(UNPRINTABLE.sub("", line.rstrip("\r\n")) + "\n" for line in lines[-LINES:])


def _rendered(stack: Stack) -> list[Path]:
    """The rendered files that may be shown: none that has a password to itself."""
    folder = stack.paths.config
    names = ("pgbouncer.ini", "userlist.txt", "pg_hba.conf", "pg_ident.conf", "supervisord.conf")
    there = [folder / name for name in names if os.path.isfile(folder / name)]
    with contextlib.suppress(OSError):
        there += [*sorted(folder.glob("services/*.conf")), *sorted(folder.glob("nv-*.sh"))]
    return there


EXPORT = re.compile(r"""^export ([A-Za-z_]\w*)=(?:'[^']*'|"[^"]*"|[^\s'"])*$""", re.M)
"""A variable in a launcher, quoted as shlex does; the value may have several lines."""
LAUNCHER_LINE = re.compile(r"#|ulimit -c 0$|unset |export \w+=\*\*\*$|cd |exec |$")
USER_LINE = re.compile(r"""("(?:[^"]|"")*")\s+"(?:[^"]|"")*"$""")


def _config(file: Path) -> str:
    """A rendered file; of launchers the variables' names, of userlist.txt the users' names.

    :raises ValueError: it does not look as we render it.
    """
    text = read_regular(file, follow_symlinks=False).decode(errors="replace")
    if file.suffix == ".sh":
        text = EXPORT.sub(r"export \1=***", text)
        if not all(LAUNCHER_LINE.match(line) for line in text.splitlines()):
            raise ValueError("it is not as the stack renders it")
    elif file.name == "userlist.txt":
        users = [USER_LINE.match(line) for line in text.splitlines()]
        text = "".join(f'{match[1]} "***"\n' if match else "# a line that is not as rendered\n" for match in users)
    return text
