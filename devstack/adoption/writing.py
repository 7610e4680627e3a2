"""Where a project's ``invoke.yaml`` goes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from devstack import trust
from devstack.errors import UsageError
from devstack.files import open_directory
from devstack.host import Host
from devstack.settings import PROJECT_FILES

FILE = PROJECT_FILES[0]


class Project:
    """The directory of a project, held open: its name may lead to another one by the time that something is written."""

    def __init__(self, root: Path, handle: int) -> None:
        self.root = root
        self._handle = handle

    @property
    def file(self) -> Path:
        """The file of settings that is written."""
        return self.root / FILE

    def check_free(self, *, force: bool) -> None:
        """Check that a file of settings can be written.

        :param force: whether one that is there is replaced.
        :raises UsageError: there is one already.
        """
        for name in PROJECT_FILES:
            if self._has(name) and not (force and name == FILE):
                raise self._taken(name)

    def check_same(self) -> None:
        """Check that the name of the directory still leads to it, and so did while its files were read by name.

        :raises UsageError: it leads to another one.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self.root), os.fstat(self._handle)):
                return
        raise _exchanged(self.root)

    def write(self, text: str, *, force: bool) -> None:
        """Write the file of settings, whole or not at all.

        :param force: whether one that is there is replaced.
        :raises UsageError: there is one by now.
        """
        try:
            Host().write_file(self.file, text.encode(), 0o644, replace=force, folder=self._handle)
        except FileExistsError:
            raise self._taken(FILE) from None

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _taken(self, name: str) -> UsageError:
        return UsageError(
            f"{self.root / name} is there already",
            why="it may hold what you have written",
            fix=["what would be written: inv --dry dev.init", "write it anew: inv dev.init --force"]
            if name == FILE
            else f"move it away; {FILE} takes its place",
        )


@contextlib.contextmanager
def opened(given: str, here: Path, environ: Mapping[str, str]) -> Iterator[Project]:
    """Open the directory of the project that is given, or that is around ``here``.

    :raises UsageError: it is no directory, or somebody else could write there, or redirect the name.
    """
    root = root_of(given, here)
    if given:
        trust.check_way(here / Path(given).expanduser(), root, environ)
    try:
        handle = open_directory(root)
    except (FileNotFoundError, NotADirectoryError):
        raise _exchanged(root) from None
    try:
        trust.check(root, environ, handle=handle)
        yield Project(root, handle)
    finally:
        os.close(handle)


def root_of(given: str, here: Path) -> Path:
    """Return the project's directory: the one that is given, or that of the git checkout around ``here``, or ``here``.

    :raises UsageError: it is no directory.
    """
    if given:
        folder = (here / Path(given).expanduser()).resolve()
        if not folder.is_dir():
            why = "it is a file" if folder.exists() else "it does not exist"
            raise UsageError(f"{folder} is no folder", why=why, fix="name the folder of the project")
        return folder
    return next((place for place in [here, *here.parents] if (place / ".git").exists()), here)


def _exchanged(root: Path) -> UsageError:
    return UsageError(
        f"{root} is another directory than at first",
        why="somebody has put it, or a link, in the place of the project's; nothing was written",
        fix="look at who may write to the directories above it, and try again",
    )
