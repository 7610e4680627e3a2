"""What the stack is, for engines that others maintain: Compose, Quadlet, Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack import trust
from devstack.errors import UsageError
from devstack.export.folder import File, write

if TYPE_CHECKING:
    from devstack.export.kubernetes import Cluster
    from devstack.stack import Stack

FORMATS = ("compose", "quadlet", "kubernetes")


class Export(Struct, frozen=True):
    """What was written."""

    format: str
    folder: Path
    files: list[File]


def check_format(name: str) -> None:
    """:raises UsageError: there is no such format."""
    if name not in FORMATS:
        what = f"--format {name!r} is not known" if name else "dev.export needs --format"
        raise UsageError(what, fix="compose, quadlet or kubernetes")


def export(stack: Stack, name: str, output: str, cluster: Cluster) -> Export:
    """Write the stack in a format; into ``export/`` of the project unless ``output`` names a folder.

    :raises UsageError: something in the settings has no place there, or a file in the folder is somebody else's.
    :raises StackError: the folder can't be written to.
    """
    s = stack.settings
    place = name if s.stack.env == "dev" else f"{s.stack.env}-{name}"
    folder = Path(output).expanduser().absolute() if output else s.root / "export" / place
    if not output:
        trust.check_links(folder, "the export", setting="--output", root=s.root)
    if name != "kubernetes":
        cluster.check_unused()
    if name == "compose":
        from devstack.export.compose import render_compose

        files = render_compose(stack, folder)
    elif name == "quadlet":
        from devstack.export.quadlet import render_quadlet

        files = render_quadlet(stack, folder)
    else:
        from devstack.export.kubernetes import render_kubernetes

        files = render_kubernetes(stack, folder, cluster)
    write(stack.context, folder, files)
    return Export(name, folder, files)
