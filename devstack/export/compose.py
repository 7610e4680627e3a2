"""The stack as a Compose file (https://docs.docker.com/reference/compose-file/)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.builds import CONTAINERFILE
from devstack.export.containers import ENTRY, HEALTH, INSIDE, Container, containers, files
from devstack.export.folder import File, signed
from devstack.export.plan import Peers, Plan
from devstack.export.quoting import Value, block, scalar
from devstack.runtimes.containers import BASE
from devstack.runtimes.docker import with_registry
from devstack.services.contained import DB_PORT, PGB_PORT
from devstack.templates import render

if TYPE_CHECKING:
    from devstack.stack import Stack


def render_compose(stack: Stack, folder: Path) -> list[File]:
    """The files of a folder for Compose. The source's path is relative to it where both are in the project."""
    s = stack.settings
    plan = Plan(stack, Peers((s.service_name("db"), DB_PORT), (s.service_name("pgbouncer"), PGB_PORT)))
    values: dict[str, object] = {
        # a name of its own: it must never take the running stack's containers or volume for its own
        "project": s.service_name("compose"),
        "entry": _flow(ENTRY),
        "health": _flow(["CMD", *HEALTH]),
        "inside": INSIDE,
        # SELinux would keep a container out of this machine's folders; giving them another label changes them
        "label": _flow(["label=disable", "no-new-privileges"]),
        "patience": f"{int(s.stack.start_timeout)}s",
    }
    for container in containers(plan):
        values |= _service(container, folder, s.root)
    text = render(s.templates / "export/compose.yaml", **values)
    return [File("compose.yaml", signed(text)), *files(plan)]


def _service(container: Container, folder: Path, root: Path) -> dict[str, object]:
    inside, outside = container.port
    port: Value = {"host_ip": container.bind, "published": str(outside), "target": inside, "protocol": "tcp"}
    values: dict[str, object] = {
        "": container.name,
        "_image": _line(with_registry(container.image)),
        "_build": block(_plain({"build": _build(container)}), 4),
        "_words": block(_plain(list(container.words)), 6),
        "_env": block(_plain(dict(container.env)), 6),
        "_ports": block(_plain([port]), 6),
        "_cwd": _line(container.cwd),
        "_memory": _line(f"{container.memory_mb}m"),
        "_shm": _line(f"{container.shm_mb}m"),
        "_signal": container.stop_signal,
        "_grace": f"{container.stop_seconds}s",
    }
    if container.volume:
        values |= {"_volume": container.volume[0], "_data": _line(container.volume[1])}
    if container.source:
        source, target = container.source
        values |= {"_source": _line(_path(source, folder, root)), "_inside": _line(target)}
    if not container.build:
        values["_build"] = "    # an image of your own"
    return {container.label + name: value for name, value in values.items()}


def _build(container: Container) -> Mapping[str, Value]:
    if not container.build:
        return {}
    return {
        "context": f"./build/{container.folder}",
        "dockerfile": CONTAINERFILE,
        "args": {k: with_registry(v) if k == BASE else v for k, v in container.build.arguments.items()},
    }


def _path(source: Path, folder: Path, root: Path) -> str:
    if source.is_relative_to(root) and folder.is_relative_to(root):
        return os.path.relpath(source, folder)
    return str(source)


def _plain(value: Value) -> Value:
    """What Compose would fill in, it leaves alone (https://docs.docker.com/reference/compose-file/interpolation/)."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, Sequence) else value


def _line(value: str) -> str:
    return scalar(value.replace("$", "$$"))


def _flow(values: Sequence[str]) -> str:
    return f"[{', '.join(map(scalar, values))}]"
