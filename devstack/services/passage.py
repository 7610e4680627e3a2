"""Files on their way into a container and out of it, as a tar stream: PostgreSQL's programs run inside, and the backups
are here."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from devstack.container import CHUNK, ContainerContext
from devstack.errors import CommandError, StackError
from devstack.files import walk_plain
from devstack.shell import Command

PREFIX = ".nv-passage-"
"""Of the folders inside, in the volume: what a kill leaves of them goes at the container's next start."""

Exec = Callable[[list[str]], Command]
"""Makes a command inside, under the account that PostgreSQL's programs run as."""


@contextlib.contextmanager
def _folder(context: ContainerContext, run: Exec, volume: Path) -> Iterator[Path]:
    """A folder inside for the time being."""
    inside = volume / f"{PREFIX}{secrets.token_hex(4)}"
    try:
        context.run(run(["mkdir", "-m", "700", str(inside)]), "make a folder in the container")
    except CommandError as error:
        raise error.plain() from None
    try:
        yield inside
    finally:
        with contextlib.suppress(StackError):
            context.run(run(["rm", "-rf", str(inside)]), "remove a folder in the container")


@contextlib.contextmanager
def inward(context: ContainerContext, run: Exec, volume: Path, path: Path) -> Iterator[Path]:
    """A copy inside of a file or folder here.

    :raises StackError: it could not be copied.
    """
    with _folder(context, run, volume) as inside:
        unpack = run(["tar", "-x", "-f", "-", "-C", str(inside)])
        try:
            with context.talk(unpack, f"copy {path.name} into the container") as talk:
                _send(path, talk.stdin)
                talk.stdin.close()
                talk.stdout.read()
        except CommandError as error:  # says nothing about what was copied, other than a program that reads it
            raise error.plain() from None
        yield inside / path.name


def _send(path: Path, stream: IO[bytes]) -> None:
    """:raises StackError: it can't be read, or has something other than files and folders in it."""
    try:
        with contextlib.suppress(BrokenPipeError), tarfile.open(fileobj=stream, mode="w|") as tar:
            for found, file in walk_plain(path):
                member = tarfile.TarInfo(str(path.name / found.relative_to(path)))
                member.type = tarfile.REGTYPE if file else tarfile.DIRTYPE
                member.mode = 0o600 if file else 0o700
                if file:
                    info = os.fstat(file.fileno())
                    member.size, member.mtime = info.st_size, int(info.st_mtime)
                tar.addfile(member, file)
    except OSError as error:
        raise StackError(
            f"{path.name} could not be copied into the container",
            why=f"{error.filename or path}: {error.strerror or error}",
            fix="have nothing but files and folders of one account in it",
        ) from None


@contextlib.contextmanager
def outward(context: ContainerContext, run: Exec, volume: Path, folder: Path) -> Iterator[Path]:
    """A folder inside to write into; what is in it at the end comes into ``folder`` here.

    :raises StackError: it could not be copied.
    """
    with _folder(context, run, volume) as inside:
        yield inside
        command = run(["tar", "-c", "-f", "-", "-C", str(inside), "."])
        with context.stream_out(command, "copy the files out of the container") as stream:
            _receive(stream, folder)


LONGEST_HEADER = 1 << 20
"""Bytes of a member's name and attributes, which are read into memory."""


class _Member(tarfile.TarInfo):
    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type not in tarfile.REGULAR_TYPES and self.size > LONGEST_HEADER:
            raise _refused("a header is too long")
        return super()._proc_member(tar)  # type: ignore[misc]


def _receive(stream: IO[bytes], folder: Path) -> None:
    """Write the files and folders of a tar stream. Whoever is the database's account inside may have written it.

    :raises StackError: something in it is neither a file nor a folder, or has no place below ``folder``.
    """
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.name.startswith("/") or ".." in parts or not (member.isfile() or member.isdir()):
                raise _refused(member.name)
            if "\0" in member.name or member.issparse():
                raise _refused(member.name)
            path = folder.joinpath(*parts)
            if member.isdir():
                path.mkdir(0o700, parents=True, exist_ok=True)
                continue
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            # a name that is there already is not written to
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                source = tar.extractfile(member)
                assert source
                shutil.copyfileobj(source, file, CHUNK)


def _refused(what: str) -> StackError:
    return StackError("the container sent what is neither a file nor a folder of a backup", why=repr(what[:200]))
