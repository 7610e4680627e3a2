"""Whose files are obeyed: a project's settings, hooks and templates are commands that run as whoever calls us.

The same idea as git's ``safe.directory`` (https://git-scm.com/docs/git-config#Documentation/git-config.txt-safedirectory).
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from devstack.errors import UsageError
from devstack.settings import PROJECT_FILES

ALLOWED = "nv-devstack/trusted"
"""The user's own list of projects that are obeyed whosever they are, below the directory of settings: a path a line."""

MAX_LINKS = 40
"""Most links on the way to a file, as in Linux (path_resolution(7))."""


def check(root: Path, environ: Mapping[str, str], *, handle: int | None = None) -> None:
    """Check whether a project's files may be obeyed.

    :param handle: a descriptor of the project's directory, where that is open: its name may lead elsewhere by now.
    :raises UsageError: one of them, or the project's directory, belongs to somebody else or is writable by others.
    """
    trusted = uids(environ)
    found = [(root, _others(os.fstat(handle), trusted))] if handle is not None else []
    for path, why in (*found, *((path, _objection(path, trusted)) for path in _instructions(root))):
        if why and not _is_allowed(root, environ, trusted):
            allowed = _list(environ)
            line = f"echo {shlex.quote(str(root))} >>{shlex.quote(str(allowed))}"
            raise UsageError(
                f"the project in {root} is not trusted",
                why=f"{path} {why}: its settings and hooks are commands that would run as you",
                fix=[
                    f"if they are what you want to run: mkdir -p {shlex.quote(str(allowed.parent))} && {line}",
                    f"or take it over: chown -R {_name(os.getuid())} {shlex.quote(str(root))};"
                    f" chmod -R go-w {shlex.quote(str(root))}",
                ],
            )


def check_way(path: Path, root: Path, environ: Mapping[str, str]) -> None:
    """Check that nobody else has a path lead to a project: he could have it lead anywhere.

    :param path: an absolute path, as it was given.
    :param root: the directory that it leads to.
    :raises UsageError: a link on the way belongs to somebody else, or the path leads elsewhere by now.
    """
    trusted = uids(environ)
    todo, at, links = [*reversed(path.parts[1:])], Path(path.anchor), 0
    while todo and links < MAX_LINKS:
        name = todo.pop()
        place = at.parent if name == ".." else at / name
        if not place.is_symlink():
            at = place
            continue
        links += 1
        if (owner := place.lstat().st_uid) not in trusted:
            raise UsageError(
                f"the project in {root} is not trusted",
                why=f"{place}, which leads there, is a link that belongs to {_name(owner)}",
                fix=f"if it is what you mean, name the directory itself: {root}",
            )
        target = Path(os.readlink(place))
        at = Path(target.anchor or at)
        todo += reversed(target.parts[1:] if target.anchor else target.parts)
    if at != root:
        raise UsageError(
            f"the project in {root} is not trusted",
            why=f"{path} led there, and leads to {at} by now",
            fix=f"if it is what you mean, name the directory itself: {root}",
        )


def uids(environ: Mapping[str, str]) -> set[int]:
    """Return the user ids whose files this user obeys: his own, root's, and under sudo those of whoever called it."""
    found = {os.getuid(), 0}
    if os.getuid() == 0 and (caller := environ.get("SUDO_UID", "")).isdecimal():
        found.add(int(caller))
    return found


def _instructions(root: Path) -> Iterator[Path]:
    """Files of a project that our own code obeys."""
    templates = root / "templates"
    yield root
    variables = root / ".env"
    for path in (*(root / name for name in PROJECT_FILES), variables, templates):
        if os.path.lexists(path) and not (path == variables and path.is_dir()):  # a virtual environment
            yield path
    for folder, folders, files in os.walk(templates):
        yield from (Path(folder, name) for name in (*folders, *files) if name != "__pycache__")


def _objection(path: Path, trusted: set[int]) -> str:
    """Return why a path is not obeyed; empty if it is."""
    try:
        infos = [os.lstat(path), os.stat(path)]
    except OSError:
        return ""  # who reads it explains that
    for info in infos:
        if why := _others(info, trusted):
            return why
    if stat.S_ISLNK(infos[0].st_mode):
        return _objection(Path(os.path.realpath(path)).parent, trusted)  # where it could be exchanged
    return ""


def _others(info: os.stat_result, trusted: Collection[int]) -> str:
    """Return who else may change a file, or what is in a directory; empty if nobody."""
    if info.st_uid not in trusted:
        return f"belongs to {_name(info.st_uid)}"
    if stat.S_ISLNK(info.st_mode):
        return ""
    if info.st_mode & stat.S_IWOTH:
        return "is writable by everybody"
    if info.st_mode & stat.S_IWGRP and not _is_private(info.st_gid, frozenset(trusted)):
        return f"is writable by the group {_group(info.st_gid)}"
    return ""


def intruders(folder: Path, trusted: Collection[int], *, root: Path, sticky: bool) -> str:
    """Return who else could exchange what is written into a directory, or the directory itself; empty if nobody.

    What is there of the way to it is looked at: up to the project's directory, which was judged by :func:`check`, or to
    the top. A directory above it that is root's may have a group, as /var/log has.

    :param sticky: whether others may write into it if they can't rename what is not theirs, as in /tmp.
    """
    real, end = Path(os.path.realpath(folder)), Path(os.path.realpath(root))
    for path in (real, *real.parents):
        if path == end:
            break
        try:
            info = os.stat(path)
        except OSError:
            continue  # who uses it explains that
        if info.st_uid in trusted:
            if info.st_mode & stat.S_ISVTX and (sticky or path != real):
                continue
            if path != real and info.st_uid == 0 and not info.st_mode & stat.S_IWOTH:
                continue
        if why := _others(info, trusted):
            return f"{path} {why}"
    return ""


def check_links(folder: Path, what: str, *, setting: str, root: Path) -> None:
    """Refuse a directory of a project, or a file in it, that is a link which leads out of the project.

    A link can come with a repository, and belongs to whoever has cloned it. A directory elsewhere is named by its own
    path, in the settings.

    :param what: what is kept in the directory.
    :param setting: where it is chosen.
    :raises UsageError: there is such a link.
    """
    if not folder.is_relative_to(root):
        return
    inside = os.path.realpath(root)
    parts = [path for path in (folder, *folder.parents) if path != root and path.is_relative_to(root)]
    with contextlib.suppress(OSError):
        parts += (Path(entry.path) for entry in os.scandir(folder) if entry.is_symlink())
    for path in parts:
        if path.is_symlink() and not (target := Path(os.path.realpath(path))).is_relative_to(inside):
            leads = folder.is_relative_to(path)
            other = (
                f"if they belong there, set {setting} to {target}" if leads else f"set {setting} to another directory"
            )
            raise UsageError(
                f"{what} can't be kept in {folder}",
                why=f"{path} is a link out of the project, to {target}; nothing was changed",
                fix=f"remove the link: rm {shlex.quote(str(path))}; or {other}",
            )


@lru_cache
def _is_private(gid: int, trusted: frozenset[int]) -> bool:
    """Check whether a group has nobody but a trusted user, whose own it is: many systems give each user one, and have
    files writable by it."""
    try:
        group = grp.getgrgid(gid)
        owner = pwd.getpwnam(group.gr_name)
    except KeyError:
        return False
    others = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == gid} | set(group.gr_mem)
    return owner.pw_gid == gid and owner.pw_uid in trusted and others <= {owner.pw_name}


def _is_allowed(root: Path, environ: Mapping[str, str], trusted: set[int]) -> bool:
    path = _list(environ)
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    return str(root) in lines and not _objection(path, trusted) and not _objection(path.parent, trusted)


def _list(environ: Mapping[str, str]) -> Path:
    """Return the file with :data:`ALLOWED`."""
    home = environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    return Path(environ.get("XDG_CONFIG_HOME") or Path(home, ".config"), ALLOWED)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
