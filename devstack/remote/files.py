"""What of a project goes to the host: its source and its settings, not what is made of them."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from devstack import console, git
from devstack.errors import UsageError
from devstack.remote.agent import RECORD
from devstack.templates import CHECKOUT, PACKAGE, PACKAGED

PROGRAM = ".nv-program"
"""The folder on the host, in the project's, with this program where the project is not a checkout of it."""
SET_UP = ("pyproject.toml", "requirements.lock", "README.md", "LICENSE", "scripts/bootstrap.sh")
"""What sets the program up on a machine. In a wheel it is in the package."""
NEVER = {
    *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".tox", ".nox", ".idea", ".vscode"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".DS_Store", RECORD),
}
"""Names of what is made anew on each machine, or is of one person."""
NEVER_ENDING = (".pyc", ".pyo", ".egg-info", ".swp", ".partial")
ALWAYS = (".env", "invoke.yaml", "invoke.yml", "invoke.json")
"""Settings, which a project often has Git ignore."""


class Sent(NamedTuple):
    """A file as it is here. ``mtime`` is in nanoseconds since the epoch; the mode of a symbolic link is -1."""

    name: str
    """Its path on the host, below the project's folder there."""
    size: int
    mtime: int
    mode: int
    path: Path
    """Its path here."""


def files_of(root: Path, *, without: Iterable[Path] = ()) -> list[Sent]:
    """The files of a project, in order: what Git has or would take, all of it where there is no Git; ``without`` are
    folders that hold what the stack makes.

    :raises UsageError: a name that is not valid UTF-8, or a line break is in it.
    """
    left_out = {os.path.relpath(folder.resolve(), root.resolve()) for folder in without} - {"."}
    names = dict.fromkeys([*(_known_to_git(root) or _all(root)), *ALWAYS])
    return sorted(sent for name in names if not _is_below(name, left_out) and (sent := _look(root, name)))


def _known_to_git(root: Path) -> list[str] | None:
    """What is in Git's index, and what is new and not ignored; None if this is no work tree, or there is no Git."""
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return None
    if (names := git.files(root)) is None:
        return None
    found = []
    for name in names:
        below = root / name
        if below.is_dir() and not below.is_symlink():  # another work tree in this one
            found += [f"{name.rstrip('/')}/{inside}" for inside in _known_to_git(below) or _all(below)]
        else:
            found.append(name)
    return found


def _all(root: Path, left_out: Container[str] = ()) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        here = os.path.relpath(folder, root)
        below = "" if here == "." else f"{here}/"
        folders[:] = [
            name
            for name in folders
            if not (_is_made(name) or f"{below}{name}" in left_out or os.path.exists(f"{folder}/{name}/pyvenv.cfg"))
        ]
        links = [name for name in folders if os.path.islink(f"{folder}/{name}")]
        yield from (f"{below}{name}" for name in [*names, *links])


def _is_made(name: str) -> bool:
    return name in NEVER or name.endswith(NEVER_ENDING)


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)


def _look(root: Path, name: str) -> Sent | None:
    path = root / name
    try:
        info = path.lstat()
    except OSError:
        return None  # in the index, and removed
    if any(map(_is_made, name.split("/"))):
        return None
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{name!r} can't be sent to the host", why="its name is not valid UTF-8", fix="rename or remove it"
        ) from None
    if stat.S_ISLNK(info.st_mode):
        return Sent(name, info.st_size, info.st_mtime_ns, -1, path)
    if not stat.S_ISREG(info.st_mode):
        return None
    mode = stat.S_IMODE(info.st_mode) & 0o777
    if path.name == ".env" or path.name.startswith(".env."):
        mode &= 0o700  # passwords are in there
    return Sent(name, info.st_size, info.st_mtime_ns, mode, path)


def program_files() -> list[Sent]:
    """This program itself, laid out as a checkout of it, for a host whose project is another one."""
    beside = PACKAGE / "setup" if PACKAGED.parent == PACKAGE else CHECKOUT
    found = [(name, beside, name) for name in SET_UP]
    for name, folder in (("devstack", PACKAGE), ("tasks", CHECKOUT / "tasks"), ("templates", PACKAGED)):
        found += [(f"{name}/{below}", folder, below) for below in _all(folder, {"setup", "templates"})]
    looked = ((name, _look(folder, below)) for name, folder, below in found)
    return sorted(sent._replace(name=f"{PROGRAM}/{name}") for name, sent in looked if sent)


def pack(files: Iterable[Sent], out: io.RawIOBase) -> None:
    """Write files as a tar stream. One that changes meanwhile is cut or filled up to the size that was announced: it
    is sent again next time."""
    with tarfile.open(fileobj=cast(IO[bytes], out), mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for sent in files:
            member = tarfile.TarInfo(sent.name)
            if sent.mode == -1:
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(sent.path)
                archive.addfile(member)
                continue
            try:
                file = sent.path.open("rb")
            except FileNotFoundError:
                continue  # gone since: it is noticed next time
            except OSError as error:
                console.note(f"not sent: {sent.path}: {error.strerror or error}")
                continue
            with file:
                member.size, member.mode = sent.size, sent.mode
                archive.addfile(member, _Exactly(file, sent.size))  # type: ignore[arg-type]


class _Exactly:
    """A file of a size that it had a moment ago."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.left = file, size

    def read(self, count: int) -> bytes:
        wanted = min(count, self.left)
        found = self.file.read(wanted)
        found += bytes(wanted - len(found))
        self.left -= wanted
        return found
