"""The stack as units of systemd, which Podman turns into containers
(https://docs.podman.io/en/latest/markdown/podman-systemd.unit.5.html)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from devstack.export.containers import INSIDE, SECRETS, Container, build_command, containers, files
from devstack.export.folder import File, signed
from devstack.export.plan import Peers, Plan
from devstack.export.quoting import unit
from devstack.runtimes.docker import with_registry
from devstack.services.contained import DB_PORT, PGB_PORT
from devstack.shell import argv, sh
from devstack.templates import Templates, render

if TYPE_CHECKING:
    from devstack.stack import Stack

PREFIX = "systemd-"
"""What Podman puts before a unit's name for the container's, and its name in the network."""


def render_quadlet(stack: Stack, folder: Path) -> list[File]:
    """The files of a folder for Quadlet. The units name the folder: it stays where it is.

    :raises UsageError: a folder's name can't be in a unit.
    """
    s = stack.settings
    names = [PREFIX + s.service_name(service) for service in ("db", "pgbouncer")]
    plan = Plan(stack, Peers((names[0], DB_PORT), (names[1], PGB_PORT)))
    templates, network = s.templates, s.service_name("net")
    made = [File(f"{network}.network", signed(render(templates / "export/quadlet.network", network=network)))]
    all_ = containers(plan)
    for container in all_:
        made += _units(container, folder, templates, network, int(s.stack.start_timeout), all_[-1].name)
    return [*made, *files(plan)]


def _units(
    container: Container, folder: Path, templates: Templates, network: str, patience: int, last: str
) -> list[File]:
    place = unit(str(folder), "the folder")
    volumes = [f"{place}/{container.folder}:{INSIDE}:ro"]
    volumes.append(f"{place}/secrets/{container.secret}:{SECRETS}/{container.secret}:ro")
    made = []
    if container.volume:
        name, path = container.volume
        volumes.append(f"{name}.volume:{path}")
        made.append(File(f"{name}.volume", signed(render(templates / "export/quadlet.volume", volume=name))))
    if container.source:
        source, path = container.source
        volumes.append(f"{unit(str(source), 'the folder')}:{unit(path, 'the folder')}:ro")
    address = f"[{container.bind}]" if ":" in container.bind else container.bind
    inside, outside = container.port
    text = render(
        templates / "export/quadlet.container",
        title=TITLES[container.label],
        name=container.name,
        container=PREFIX + container.name,
        image=with_registry(container.image),
        fetch=_fetch(container),
        advice=ADVICE[container.label],
        order=f"Requires={container.after}.service\nAfter={container.after}.service\n" if container.after else "",
        volumes="\n".join(f"Volume={volume}" for volume in volumes),
        network=network,
        inside=INSIDE,
        last=last,
        published=f"{address}:{outside}:{inside}",
        cwd=unit(container.cwd, "the folder"),
        memory=container.memory_mb,
        shm=container.shm_mb,
        signal=container.stop_signal,
        seconds=container.stop_seconds,
        longer=container.stop_seconds + 10,
        patience=patience,
        timeout=patience + 60,
    )
    # what systemd would read in a way of its own, it does not see
    words = "".join(f"export {name}={argv([value])}\n" for name, value in container.env.items())
    words += f"set -- {argv(container.words)}\n"
    made.append(File(f"{container.folder}/words.sh", signed(words)))
    return [*made, File(f"{container.name}.container", signed(text))]


TITLES = {"db": "PostgreSQL", "pgb": "PgBouncer", "api": "the application"}

PRIVATE = "# - PublishPort: out, where only the other services reach it, over the network"
ADVICE = {
    "db": f"""\
{PRIVATE}
# - backups: the volume is on this machine alone
# - --memory and --shm-size, as measured""",
    "pgb": PRIVATE,
    "api": """\
# - an image with the source in it, instead of the folder of this machine; api.reload: false, and export again
# - a proxy with TLS before the port""",
}
"""What to change for production, apart from what is so for all of them."""


def _fetch(container: Container) -> str:
    if not container.build:
        return sh("podman pull $image", image=with_registry(container.image))
    return build_command("podman", container.image, container.build, f"build/{container.folder}")
