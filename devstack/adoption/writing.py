"""Where a project's ``invoke.yaml`` goes."""

from __future__ import annotations

from pathlib import Path

from devstack.errors import UsageError
from devstack.host import Host
from devstack.settings import PROJECT_FILES

FILE = PROJECT_FILES[0]


def root_of(given: str, here: Path) -> Path:
    """The project's folder: the one that is given, else that of the git checkout around ``here``, else ``here``.

    :raises UsageError: it is no folder.
    """
    if given:
        folder = (here / Path(given).expanduser()).resolve()
        if not folder.is_dir():
            why = "it is a file" if folder.exists() else "it does not exist"
            raise UsageError(f"{folder} is no folder", why=why, fix="name the folder of the project")
        return folder
    return next((place for place in [here, *here.parents] if (place / ".git").exists()), here)


def check(root: Path, *, force: bool) -> None:
    """:raises UsageError: there is a file of settings already."""
    for name in PROJECT_FILES:
        if (root / name).exists() and not (force and name == FILE):
            raise UsageError(
                f"{root / name} is there already",
                why="it may hold what you have written",
                fix=["what would be written: inv --dry dev.init", "write it anew: inv dev.init --force"]
                if name == FILE
                else f"move it away; {FILE} takes its place",
            )


def write(root: Path, text: str) -> Path:
    """Write the file, whole or not at all."""
    path = root / FILE
    Host().write_file(path, text.encode(), 0o644)
    return path
