"""Git in a project, without any program that the project's own configuration names.

A project's ``.git/config`` can name commands: ``core.fsmonitor``, hooks, filters, a pager, a transport for objects that
a partial clone lacks. Git runs them as whoever calls it: https://git-scm.com/docs/git-config.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

OPTIONS = (
    "--no-pager",
    *("-c", "core.fsmonitor="),  # not `false`: before 2.36 that is the name of a program
    *("-c", f"core.hooksPath={os.devnull}"),
    *("-c", "protocol.allow=never"),
)
"""Options before the subcommand; they win over the project's configuration."""
VARIABLES = {
    "GIT_ALLOW_PROTOCOL": "",  # no transport, whatever protocol.*.allow says: `ext::` is a command
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
"""Variables for Git itself."""
KEPT = {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_CEILING_DIRECTORIES"}
"""The caller's variables that say where the caller's own configuration is. Others, such as ``GIT_DIR`` in a hook, name
another repository or a program."""


def files(root: Path) -> list[str] | None:
    """Return the names of the files that Git has in its index, and of new ones that it does not ignore, relative to
    ``root``. Content is not compared, so no filter runs.

    :returns: None if ``root`` is in no work tree, or Git is missing or fails.
    """
    found = _output(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", ".")
    return None if found is None else [os.fsdecode(name) for name in found.split(b"\0") if name]


def version(root: Path, seconds: float) -> str | None:
    """Return the name of the commit that is checked out: the last tag, and what was committed since.

    Whether files were changed since is not said: to compare them Git runs the project's filters.

    :param seconds: the time that Git may take.
    :returns: None if ``root`` is in no work tree, or Git is missing or fails.
    """
    found = _output(root, "describe", "--always", "--tags", seconds=seconds)
    return None if found is None else found.decode(errors="replace").strip() or None


def _output(root: Path, *words: str, seconds: float | None = None) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", *OPTIONS, *words],  # noqa: S607
            cwd=root,
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=seconds,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if not name.startswith("GIT_") or name in KEPT}
    return {**kept, **VARIABLES}
