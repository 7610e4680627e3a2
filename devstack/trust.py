"""Whose files are obeyed: a project's settings, hooks and templates are commands that run as whoever calls us.

The same idea as git's ``safe.directory`` (https://git-scm.com/docs/git-config#Documentation/git-config.txt-safedirectory).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path

from devstack.errors import UsageError
from devstack.files import NotPlain, follow
from devstack.owners import is_trusted, name_of, others
from devstack.owners import uids as uids
from devstack.settings import PROJECT_FILES
from devstack.shell import typed

ALLOWED = "nv-devstack/trusted"
"""The user's own list of projects that are obeyed whosever they are, below the directory of settings: a path a line."""


def check(root: Path, environ: Mapping[str, str], *, handle: int | None = None) -> None:
    """Check whether a project's files may be obeyed.

    :param handle: a descriptor of the project's directory, where that is open: its name may lead to another one by now.
    :raises UsageError: one of them, or the project's directory, belongs to somebody else or is writable by others.
    """
    trusted = uids(environ)
    opened = others(os.fstat(handle), trusted) if handle is not None else ""
    found = [f"{root} {opened}"] if opened else []
    for why in filter(None, chain(found, _objections(root, trusted))):
        if not _is_allowed(root, environ, trusted):
            allowed, user = _list(environ), name_of(os.getuid())
            line = f"printf '%s\\n' {typed(root)} >>{typed(allowed)}"  # an echo may take backslashes for something else
            raise UsageError(
                f"the project in {root} is not trusted",
                why=f"{why}: its settings and hooks are commands that would run as you",
                fix=[
                    f"if they are what you want to run: mkdir -p {typed(allowed.parent)} && {line}",
                    f"or take it over: chown -R {user} {typed(root)}; chmod -R go-w {typed(root)}",
                ],
            )


def check_way(path: Path, root: Path, environ: Mapping[str, str]) -> None:
    """Check that nobody else has a path lead to a project: he could have it lead anywhere.

    :param path: an absolute path, as it was given.
    :param root: the directory that it leads to.
    :raises UsageError: a link on the way belongs to somebody else, or the path leads to another directory by now.
    """
    try:
        at = follow(path, uids(environ))
    except NotPlain as error:
        raise UsageError(
            f"the project in {root} is not trusted",
            why=f"{path} leads there, and {error.strerror}",
            fix=f"if it is what you mean, name the directory itself: {root}",
        ) from None
    if at != root:
        raise UsageError(
            f"the project in {root} is not trusted",
            why=f"{path} led there, and leads to {at} by now",
            fix=f"if it is what you mean, name the directory itself: {root}",
        )


MAX_LEVELS = 16
"""Largest number of directories within each other in the templates."""
MAX_DIRECTORIES = 1000
"""Largest number of directories in the templates. A link there may lead to a whole file system."""


def _objections(root: Path, trusted: set[int]) -> Iterator[str]:
    """Yield why files of a project that our own code obeys should not be obeyed."""
    templates = root / "templates"
    variables = root / ".env"
    for path in (root, *(root / name for name in PROJECT_FILES), variables, templates):
        if os.path.lexists(path) and not (path == variables and path.is_dir()):  # a virtual environment
            yield _objection(path, trusted, root)
    seen = set()
    for folder, folders, files in os.walk(templates, followlinks=True):
        try:
            info = os.stat(folder)
        except OSError:
            continue  # who reads it explains that
        if (info.st_dev, info.st_ino) in seen:  # a link has led there before, or leads back
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        if len(Path(folder).relative_to(templates).parts) > MAX_LEVELS:
            yield f"{folder} is more than {MAX_LEVELS} directories deep in the templates, where nothing is judged"
            return
        if len(seen) > MAX_DIRECTORIES:
            yield f"{templates} has more than {MAX_DIRECTORIES} directories in it, with those that links lead to"
            return
        yield from (
            _objection(Path(folder, name), trusted, root) for name in (*folders, *files) if name != "__pycache__"
        )


def _objection(path: Path, trusted: set[int], root: Path) -> str:
    """Return why a path is not obeyed; empty if it is."""
    try:
        info = os.lstat(path)
        why = others(info, trusted)
        if why or not stat.S_ISLNK(info.st_mode):
            return f"{path} {why}" if why else ""
        real = follow(_below(root, path), trusted)
        if why := others(os.stat(real), trusted):
            return f"{path} {why}"
    except NotPlain as error:
        return error.strerror or ""
    except OSError:
        return ""  # who reads it explains that
    return intruders(real.parent, trusted, root=root, sticky=False)  # where it could be exchanged


def _below(root: Path, path: Path) -> Path:
    """Return a path in a project without the links on the way to the project, which are not judged."""
    return Path(os.path.realpath(root)) / path.relative_to(root) if path.is_relative_to(root) else path


def intruders(folder: Path, trusted: Collection[int], *, root: Path, sticky: bool) -> str:
    """Return who else could exchange what is written into a directory, or the directory itself; empty if nobody.

    Links on the way to it are judged as by :func:`~devstack.files.follow`. So is what is there of the directories: up
    to the project's, which was judged by :func:`check`, or to the top. A directory above it that is root's may have a
    group, as /var/log has.

    :param sticky: whether others may write into it if they can't rename what is not theirs, as in /tmp.
    """
    try:
        real = follow(_below(root, folder), trusted)
    except NotPlain as error:
        return error.strerror or ""
    end = Path(os.path.realpath(root))
    for path in (real, *real.parents):
        if path == end:
            break
        try:
            info = os.stat(path)
        except OSError:
            continue  # who uses it explains that
        if is_trusted(info.st_uid, trusted):
            if not stat.S_ISDIR(info.st_mode):
                continue  # nothing can be in it
            if info.st_mode & stat.S_ISVTX and (sticky or path != real):
                continue
            if path != real and is_trusted(info.st_uid, {0}) and not info.st_mode & stat.S_IWOTH:
                continue
        if why := others(info, trusted):
            return f"{path} {why}"
    return ""


def check_links(folder: Path, what: str, *, setting: str, root: Path, files: bool = True) -> None:
    """Refuse a directory of a project, or a file in it, that is a link which leads out of the project.

    A link can come with a repository, and belongs to whoever has cloned it. A directory elsewhere is named by its own
    path, in the settings.

    :param what: what is kept in the directory.
    :param setting: where it is chosen.
    :param files: whether files in it are written that are there already.
    :raises UsageError: there is such a link.
    """
    if not folder.is_relative_to(root):
        return
    inside = os.path.realpath(root)
    parts = [path for path in (folder, *folder.parents) if path != root and path.is_relative_to(root)]
    if files:
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
                fix=f"remove the link: rm {typed(path)}; or {other}",
            )


def _is_allowed(root: Path, environ: Mapping[str, str], trusted: set[int]) -> bool:
    path = _list(environ)
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    return str(root) in lines and not any(_objection(place, trusted, root) for place in (path, path.parent))


def _list(environ: Mapping[str, str]) -> Path:
    """Return the file with :data:`ALLOWED`."""
    home = environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    return Path(environ.get("XDG_CONFIG_HOME") or Path(home, ".config"), ALLOWED)
