"""Read files that somebody else may have written: regular ones only, and no more of them than fits."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from devstack import owners

MAX_BYTES = 1_000_000
"""Largest file that is read: a setting, a module, a manifest of packages."""
MAX_YAML_BYTES = 250_000
"""Invoke's parser is written in Python, and takes 15 seconds for a megabyte."""
MAX_YAML_NODES = 100_000
"""Largest YAML document, with each alias counted as what it stands for."""

YAML_TEXT = 100
"""Characters of a text that count as a value of their own."""
MAX_JSON_DEPTH = 200
"""Most arrays and objects within each other: code that walks them is recursive, and Python allows a thousand calls."""

MAX_DEPTH = 100
"""Most directories within each other that are walked through: PostgreSQL's have five, and the walk is recursive."""

MAX_LINKS = 40
"""Most links on the way to a file, as in Linux (path_resolution(7))."""

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


class NotPlain(OSError):
    """A path does not lead to a regular file of a reasonable size in the place where it must be."""


def read_regular(
    path: Path, *, limit: int = MAX_BYTES, within: Path | None = None, follow_symlinks: bool = True
) -> bytes:
    """Return the content of a regular file. A FIFO or a device is never opened, as that may wait for ever.

    :param limit: the largest size, in bytes.
    :param within: a directory that the file must be in, also after all links are followed.
    :param follow_symlinks: whether the file may be a link.
    :raises NotPlain: it is something else, too large, or outside of ``within``.
    :raises OSError: it can't be read.
    """
    if within is not None:
        path = Path(os.path.realpath(path))  # unlike resolve(), it leaves a link to itself to stat()
        if not path.is_relative_to(os.path.realpath(within)):
            raise NotPlain(errno.EINVAL, f"it leads out of {within}", str(path))
    if follow_symlinks:
        _check(path, os.stat(path), limit)
        # the file may have been exchanged since: opened this way nothing waits
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    else:
        handle = open_plain(path)
    with contextlib.ExitStack() as held:
        held.callback(os.close, handle)
        _check(path, os.fstat(handle), limit)
        content = held.enter_context(os.fdopen(handle, "rb", closefd=False)).read(limit + 1)
    if len(content) > limit:
        raise NotPlain(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return content


def _check(path: Path, info: os.stat_result, limit: int) -> None:
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        raise NotPlain(errno.EINVAL, f"it is {KINDS.get(kind, 'no regular file')}", str(path))
    if info.st_size > limit:
        raise NotPlain(errno.EFBIG, f"it has {info.st_size} bytes, at most {limit} are read", str(path))


def open_plain(path: Path | str, *, folder: int | None = None) -> int:
    """Return a descriptor of a regular file or a directory. No link is followed, and nothing waits.

    :param folder: the descriptor of the directory that the path begins in.
    :raises NotPlain: it is something else.
    :raises OSError: it can't be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        what = {errno.ELOOP: "a link", errno.ENXIO: "a socket"}.get(error.errno or 0)
        if what is None:
            raise
        raise NotPlain(errno.EINVAL, f"it is {what}", str(path)) from None
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        os.close(handle)
        raise NotPlain(errno.EINVAL, f"it is {KINDS.get(kind, 'no regular file')}", str(path))
    return handle


def follow(path: Path, trusted: Collection[int]) -> Path:
    """Return where a path leads, after each link on the way was judged. What is not there yet is taken as it is named.

    A link is followed if it belongs to a trusted user and is in a directory where nobody else could exchange it. So the
    result stands for what was judged as long as it is opened without following links.

    :param path: an absolute path.
    :param trusted: user ids whose links are followed; so are those of whoever owns the root directory.
    :raises NotPlain: somebody else could redirect the path, or there are too many links.
    """
    todo, at, links = [*reversed(path.parts[1:])], Path(path.anchor), 0
    while todo:
        name = todo.pop()
        place = at.parent if name == ".." else at / name
        try:
            info = place.lstat()
        except OSError:
            at = place  # who uses it explains that
            continue
        if not stat.S_ISLNK(info.st_mode):
            at = place
            continue
        links += 1
        if links > MAX_LINKS:
            raise NotPlain(errno.ELOOP, f"there are more than {MAX_LINKS} links on the way to it", str(path))
        if why := _exchangeable(place, info, trusted):
            raise NotPlain(errno.EPERM, f"{place} {why}", str(path))
        target = Path(os.readlink(place))
        at = Path(target.anchor or at)
        todo += reversed(target.parts[1:] if target.anchor else target.parts)
    return at


def _exchangeable(link: Path, info: os.stat_result, trusted: Collection[int]) -> str:
    """Return who else could have put a link in its place, or could replace it; empty if nobody."""
    if not owners.is_trusted(info.st_uid, trusted):
        return f"is a link that belongs to {owners.name_of(info.st_uid)}"
    folder = link.parent.stat()
    if owners.is_trusted(folder.st_uid, trusted) and folder.st_mode & stat.S_ISVTX:
        return ""
    why = owners.others(folder, trusted)
    return f"is a link, and {link.parent} {why}" if why else ""


def open_file(path: Path, trusted: Collection[int]) -> BinaryIO:
    """Open a file to read it; links are followed as by :func:`follow`.

    :raises NotPlain: it is no regular file, or somebody else could redirect the path.
    :raises OSError: it can't be opened.
    """
    file = os.fdopen(open_resolved(follow(path, trusted)), "rb")
    if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
        file.close()
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return file


def open_resolved(path: Path) -> int:
    """Return a descriptor of a regular file or a directory, as :func:`open_plain`; no name on the way to it is a link.

    :param path: an absolute path without links, as :func:`follow` returns.
    :raises NotPlain: it is something else.
    :raises OSError: it can't be opened.
    """
    if not hasattr(os, "O_PATH"):  # a directory on the way may be closed to readers
        return open_plain(path)
    folder = open_directory(path.parent, search=True)
    try:
        return open_plain(path.name or ".", folder=folder)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(folder)


def open_directory(path: Path, *, search: bool = False) -> int:
    """Return a descriptor of a directory. No name on the way to it is a link, also if one is put there meanwhile.

    :param path: an absolute path without links, as :meth:`Path.resolve` returns.
    :param search: whether it is only to open what is in it, where the system has that.
    :raises NotADirectoryError: a name is a link, or no directory.
    :raises OSError: it can't be opened.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path.anchor, flags | (getattr(os, "O_PATH", 0) if search else 0))
    names = path.parts[1:]
    for index, name in enumerate(names, 1):
        # a directory on the way may be closed to readers
        reach = getattr(os, "O_PATH", 0) if search or index < len(names) else 0
        try:
            inner = os.open(name, flags | reach, dir_fd=handle)
        except OSError as error:
            error.filename = str(path)
            if error.errno == errno.ELOOP:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
            raise
        finally:
            os.close(handle)
        handle = inner
    return handle


def walk_plain(path: Path) -> Iterator[tuple[Path, BinaryIO | None]]:
    """Yield a file, or a directory and all that is in it: the path, and the open file; None for a directory.

    Each is opened in the directory that was opened before it, so that no name leads anywhere else by then.

    :raises NotPlain: something is neither a file nor a directory, or was put there out of another account's files.
    :raises OSError: something can't be read.
    """
    handle = open_plain(path)
    yield from _walk_plain(path, handle, os.fstat(handle).st_uid, MAX_DEPTH)


def _walk_plain(path: Path, handle: int, owner: int, depth: int) -> Iterator[tuple[Path, BinaryIO | None]]:
    with contextlib.ExitStack() as held:
        held.callback(os.close, handle)
        info = os.fstat(handle)
        is_file = stat.S_ISREG(info.st_mode)
        # a hard link needs no right to what it is a name of
        if info.st_uid != owner and (info.st_uid not in (0, os.geteuid()) or (is_file and info.st_nlink > 1)):
            raise NotPlain(errno.EPERM, f"it belongs to uid {info.st_uid}, its folder to uid {owner}", str(path))
        if is_file:
            yield path, held.enter_context(os.fdopen(handle, "rb", closefd=False))
            return
        if not depth:
            raise NotPlain(errno.EINVAL, f"it is more than {MAX_DEPTH} directories deep", str(path))
        yield path, None
        for name in sorted(os.listdir(handle)):
            yield from _walk_plain(path / name, open_plain(name, folder=handle), owner, depth - 1)


def copy_plain(source: Path, target: Path) -> None:
    """Copy a file, or a directory and all that is in it, for ourselves alone.

    :raises NotPlain: as :func:`walk_plain`.
    :raises OSError: something can't be read or written.
    """
    for path, file in walk_plain(source):
        copy = target / path.relative_to(source)
        if file is None:
            copy.mkdir(0o700)
            continue
        with os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as written:
            shutil.copyfileobj(file, written, 1 << 20)


def is_private(path: Path) -> bool:
    """Check that nobody but us and root can change a file, or a directory and all that is in it, or put others there.

    :raises OSError: it can't be looked at.
    """
    friends = {0, os.geteuid()}
    if os.path.realpath(path) != os.path.abspath(path):
        return False
    for parent in Path(os.path.abspath(path)).parents:
        info = parent.stat()
        if info.st_uid not in friends or (info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX):
            return False
    for found in (path, *path.rglob("*")):
        info = found.lstat()
        plain = stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)
        if not plain or info.st_uid not in friends or info.st_mode & 0o022:
            return False
    return True


def load_yaml(text: str, name: str) -> Any:
    """Return what a YAML document says, if it is of a reasonable size with all its aliases expanded.

    A few lines of aliases of aliases stand for billions of values (https://en.wikipedia.org/wiki/Billion_laughs_attack).

    :param name: the file's name, for errors.
    :raises invoke.vendor.yaml.YAMLError: it is no YAML.
    :raises ValueError: it is too large, contains itself, or is nested too deeply.
    """
    from invoke.vendor import yaml

    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it has more than {MAX_YAML_BYTES} characters")
    loader = yaml.SafeLoader(text)  # type: ignore[no-untyped-call]
    loader.name = name
    try:
        node = loader.get_single_node()  # type: ignore[no-untyped-call]
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def load_json(text: str | bytes, *, strict: bool = True) -> Any:
    """Return what a JSON document says that somebody else has written.

    :param strict: whether control characters in strings are errors.
    :raises ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        found = json.loads(text, strict=strict)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(MAX_JSON_DEPTH):
        level = [part for value in level for part in (value.values() if isinstance(value, dict) else value)]
        level = [part for part in level if isinstance(part, dict | list)]
    if level:
        raise ValueError("it is nested too deeply")
    return found


def _count(node: Any, known: dict[int, int]) -> int:
    """Return the number of nodes that a node stands for.

    :param known: the numbers by the nodes' ids; 0 for one that is being counted.
    :raises ValueError: it is too large, or contains itself.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias in it contains itself")
        return known[id(node)]
    known[id(node)] = 0
    value = node.value if isinstance(node.value, list) else []
    total = 1 if isinstance(node.value, list) else 1 + len(node.value) // YAML_TEXT
    for item in value:
        for part in item if isinstance(item, tuple) else (item,):
            total += _count(part, known)
    if total > MAX_YAML_NODES:
        raise ValueError(f"its aliases stand for more than {MAX_YAML_NODES} values")
    known[id(node)] = total
    return total
