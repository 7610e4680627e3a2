"""The script that becomes a service: it carries the variables, so that no secret is on a command line."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from devstack.runtimes import ServiceSpec
from devstack.shell import argv, sh

HEADER = "# Rendered by nv-devstack at every start."
NO_CORE = "ulimit -c 0"
"""A service that crashes would leave its variables and memory, which hold passwords, in a file."""

BOOT = 'eval "$(printf %s "$NV_START" | base64 -d)"'
"""What a container's shell is given: the variable holds the script."""


def launcher(spec: ServiceSpec, env: Mapping[str, str]) -> str:
    """Lines of sh(1) that end in the service; ``env`` goes beyond the service's own variables."""
    lines = [HEADER, NO_CORE]
    if spec.unset:
        lines.append(f"unset {argv(spec.unset)}")
    lines += [f"export {key}={argv([value])}" for key, value in sorted({**spec.env, **env}.items())]
    lines += _inside(spec)
    lines.append(sh("cd $cwd || exit 1", cwd=spec.cwd))
    lines.append(f"exec {argv(spec.argv)}")
    return "\n".join(lines) + "\n"


def _inside(spec: ServiceSpec) -> Iterator[str]:
    """What is put in place in a container: its files, as they are only at its first start, then its own preparations.

    A reload writes files anew inside, and an engine that starts the container again must not take that back. A service
    of an account of its own may have left links there: the script begins again as that account before it writes.
    """
    if spec.inside is None:
        return
    if spec.inside.account:
        yield spec.inside.account.rstrip("\n")
        yield f'[ -z "$as" ] || exec $as /bin/sh -c {argv([BOOT])}'
    yield "unset NV_START"
    for path, content in spec.inside.files.items():
        encoded = base64.b64encode(content.encode()).decode()
        folder = PurePosixPath(path).parent
        yield sh(
            "[ -e $path ] || (umask 077 && mkdir -p $folder"
            " && echo $encoded | base64 -d >$path.new && mv $path.new $path) || exit 1",
            path=path,
            folder=folder,
            encoded=encoded,
        )
    if spec.inside.setup:
        yield spec.inside.setup.rstrip("\n")
