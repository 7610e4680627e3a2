"""Writing aside: a backup gets its final name when it is whole, its manifest last; leftovers of a killed run go.

What is being written is ``.nv-ID.partial``, a file or a folder, locked by the process that writes it. The kernel drops
that lock with the process, so a partial that can be locked belongs to nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from devstack.data.manifest import Manifest, encode, load, path_of
from devstack.host import FRESH, Host


class Aside:
    """A backup that is being written into a folder."""

    def __init__(self, folder: Path, *, directory: bool) -> None:
        identity = secrets.token_hex(4)
        self.path = folder / f".nv-{identity}.partial"
        self.manifest = folder / f".nv-{identity}.manifest"
        self.directory = directory
        self.handle = -1

    def make(self) -> None:
        """Make the file or the folder, and lock it."""
        if self.directory:
            self.path.mkdir(mode=0o700)
            self.handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        else:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self.handle, fcntl.LOCK_EX)

    def publish(self, name: Callable[[], str], manifest: Callable[[str], Manifest]) -> tuple[Path, Manifest]:
        """Give it the first of the names that is free, then its manifest.

        :raises FileExistsError: ``name`` gave the same name twice.
        """
        os.fsync(self.handle)
        tried = ""
        while True:
            final = self.path.with_name(name())
            if final.name == tried:
                raise FileExistsError(final)
            tried = final.name
            made = manifest(final.name)
            _write(self.manifest, encode(made))
            try:
                if os.path.lexists(path_of(final)):
                    raise FileExistsError(path_of(final))
                _give_name(self.path, final, directory=self.directory)
            except FileExistsError:
                self.manifest.unlink()
                continue
            _sync(final.parent)
            self.manifest.rename(path_of(final))
            _sync(final.parent)
            return final, made

    def discard(self) -> None:
        """Remove what is left of it, which after :meth:`publish` is nothing but a second name."""
        _remove(self.path)
        self.manifest.unlink(missing_ok=True)
        if self.handle >= 0:
            os.close(self.handle)


@contextlib.contextmanager
def aside(folder: Path, *, directory: bool = False) -> Iterator[Aside]:
    """Something to write to in this folder, gone afterwards unless it was published."""
    made = Aside(folder, directory=directory)
    try:
        made.make()  # in here: an interruption right after it leaves nothing
        yield made
    finally:
        made.discard()


def sweep(folder: Path) -> list[str]:
    """Put right what killed runs left in a folder; what was done, in words.

    One that was killed after its dump got its name and before its manifest did is completed: both are whole then.
    """
    done = []
    for identity in sorted({path.name.split(".")[1] for path in _leftovers(folder)}):
        partial, manifest = folder / f".{identity}.partial", folder / f".{identity}.manifest"
        if not _is_abandoned(partial if os.path.lexists(partial) else manifest):
            continue
        try:
            name = _complete(partial, manifest)
            manifest.unlink(missing_ok=True)
            _remove(partial)
        except OSError as error:  # a directory that nothing can be written to; the next command tries again
            done.append(f"could not remove {partial}, left behind by a command that was cut off: {error.strerror}")
            continue
        if name:
            done.append(f"completed {name}, whose command was cut off after writing it")
        else:
            done.append(f"removed {partial.name}, left behind by a command that was cut off")
    return done


def _leftovers(folder: Path) -> Iterator[Path]:
    for pattern in (".nv-????????.partial", ".nv-????????.manifest"):
        yield from folder.glob(pattern)


def _is_abandoned(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        mode = os.fstat(handle).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _complete(partial: Path, manifest: Path) -> str:
    """Give the manifest its name if the dump got its own; that name, or nothing."""
    try:
        made = load(manifest)
    except (OSError, ValueError):
        return ""
    final = manifest.with_name(made.file)
    if final.parent != manifest.parent or os.path.lexists(path_of(final)) or not os.path.lexists(final):
        return ""
    if os.path.lexists(partial) and not os.path.samefile(partial, final):
        return ""
    manifest.rename(path_of(final))
    _sync(manifest.parent)
    return made.file


def retire(backup: Path) -> None:
    """Remove a backup: it loses its name first, so that what a killed run leaves is no backup any more."""
    gone = backup.with_name(f".nv-{secrets.token_hex(4)}.partial")
    backup.rename(gone)
    path_of(backup).unlink(missing_ok=True)
    _remove(gone)
    _sync(backup.parent)


def _give_name(path: Path, final: Path, *, directory: bool) -> None:
    """Rename without replacing anything.

    :raises FileExistsError: the name is taken.
    """
    if not directory:
        try:
            os.link(path, final)
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                raise
    # a folder, or a file system without hard links: whoever else could take the name waits for our lock
    if os.path.lexists(final):
        raise FileExistsError(final)
    path.rename(final)


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, FRESH, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    Host().remove(path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
