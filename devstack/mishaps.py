"""What Python and its libraries raise, in the stack's own form: the cases whose cause and fix are known by their kind.

Where more is known, the place that raises says more; this is for what may happen anywhere, such as a full disk.
"""

from __future__ import annotations

import errno
import os
import string
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from devstack.errors import StackError, UsageError
from devstack.files import NotPlain
from devstack.owners import name_of
from devstack.shell import typed


class Mishap(NamedTuple):
    """Cause and fix of an OS error. ``$path`` stands for the file, ``$typed`` for the file in a command to paste."""

    why: str
    fix: str


OTHERS = "set stack.state_dir, stack.cache_dir and stack.log_dir to folders"
OWN = f"{OTHERS} of your own; or, if $place should be yours, take it back with sudo chown"
MISHAPS = {
    errno.ENOSPC: Mishap("the disk is full", "free some space; inv system-info shows the disks"),
    errno.EDQUOT: Mishap("your quota of the disk is used up", "free some space; inv system-info shows the disks"),
    errno.EROFS: Mishap("the disk is read-only", f"{OTHERS} on another disk"),
    errno.EACCES: Mishap("$user may not", OWN),
    errno.EPERM: Mishap("$user may not", OWN),
    errno.EISDIR: Mishap("a folder is where a file belongs", "move it away: mv $typed $typed.away"),
    errno.ENOTDIR: Mishap("a file is where a folder belongs", "move it away"),
    errno.EEXIST: Mishap("something else has this name", "move it away"),
    errno.ENOENT: Mishap("it is not there", "repeat the command; if it was removed meanwhile, that was all"),
    errno.ENAMETOOLONG: Mishap("its name is too long", "set stack.state_dir to a folder with a shorter path"),
    errno.EMFILE: Mishap("this process may open no more files", "raise the limit: ulimit -n 1024"),
    errno.ENFILE: Mishap("the system may open no more files", "end some programs"),
    errno.ENOMEM: Mishap("there is no memory left", "end some programs"),
    errno.EIO: Mishap("the disk does not answer as it should", "look at the system's own log; copy your data away"),
}


def fix_of(lines: Iterable[str]) -> str:
    """What mends a program's complaint of the disk, in the words of the C library; empty where it has none."""
    text = "\n".join(lines)
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return next((MISHAPS[number].fix for number in numbers if os.strerror(number) in text), "")


def explain(error: BaseException) -> StackError | None:
    """The error for a person, or None where nobody foresaw it."""
    if isinstance(error, NotPlain):
        return StackError(
            f"{error.filename or 'a file'} was not read",
            why=error.strerror or "it is no regular file",
            fix="look at who has put it there, and remove it",
        )
    if isinstance(error, OSError) and error.errno in MISHAPS:
        return _file(error)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of Path.expanduser()
        return UsageError(
            "a path begins with ~ and the name of no account here",
            why="~name stands for the home directory of the account that has this name",
            fix="write the path in full; a file whose name begins with ~ is ./~name",
        )
    if isinstance(error, MemoryError):
        return StackError("there is no memory left", fix="end some programs")
    module = type(error).__module__
    if module.startswith("psycopg2"):
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return StackError("the database did not do as it was asked", why=lines[0], evidence=lines[1:], fix="inv health")
    if module.startswith("invoke.vendor.yaml") or type(error).__name__ == "YAMLError":
        return UsageError("a configuration file is not valid YAML", evidence=_places(error), fix="correct this line")
    return None


def _places(error: BaseException) -> list[str]:
    """Return what a YAML error says, and where, without the line itself, which may have a secret."""
    said = [(getattr(error, name, None), getattr(error, f"{name}_mark", None)) for name in ("context", "problem")]
    lines = []
    for text, mark in said:
        lines += [text] if text else []
        lines += [f'  in "{mark.name}", line {mark.line + 1}, column {mark.column + 1}'] if mark else []
    return lines or [type(error).__name__]


def _file(error: OSError) -> StackError:
    mishap = MISHAPS[error.errno or 0]
    given = error.filename2 or error.filename  # of a rename the second one, which people know
    name = os.fsdecode(given) if isinstance(given, str | bytes) else ""
    place = _nearest(Path(name)) if name else None
    values = {"path": name or "the file", "place": str(place or "the file"), "user": name_of(os.getuid())}
    values["typed"] = typed(name) if name else "FILE"
    owned = _owner(place) if place and error.errno in (errno.EACCES, errno.EPERM) else ""
    return StackError(
        f"{name} can't be used" if name else "a file can't be written or read",
        why=f"{string.Template(mishap.why).substitute(values)} ({error.strerror})",
        evidence=[owned] if owned else [],
        fix=string.Template(mishap.fix).substitute(values),
    )


def _nearest(path: Path) -> Path | None:
    """The file, or the nearest folder above it that can be seen."""
    return next((place for place in (path, *path.parents) if os.path.lexists(place)), None)


def _owner(path: Path) -> str:
    info = path.lstat()
    mode = f"{info.st_mode & 0o7777:04o}"
    return f"{path} belongs to {name_of(info.st_uid)}, mode {mode}; this runs as {name_of(os.getuid())}"
