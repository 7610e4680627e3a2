"""Reading a dump from beginning to end, whatever its layout."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.container import CHUNK
from devstack.data.archives import archive
from devstack.data.sqltext import Outline, converted
from devstack.data.streams import Digested, chunks
from devstack.errors import CommandError, ContentError, StackError

if TYPE_CHECKING:
    from devstack.stack import Stack


class Wrong(Exception):
    """What is wrong with a file's content."""

    def __init__(self, text: str, evidence: list[str] | None = None, fix: list[str] | None = None) -> None:
        super().__init__(text)
        self.evidence = evidence or []
        self.fix = fix or []


class NotChecked(Wrong):
    """Why a file's content could not be judged: nothing is known to be wrong with it."""


SYSTEM_ERRORS = (
    *("EACCES", "EPERM", "EROFS", "EIO", "EREMOTEIO", "ENXIO", "ENODEV", "EBUSY", "ENOSPC", "EDQUOT", "EFBIG"),
    *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "ETXTBSY", "ENOEXEC"),
    *("ESTALE", "ENOTCONN", "ESHUTDOWN", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ETIMEDOUT"),
    *("EKEYEXPIRED", "ENOKEY"),
)
"""Names of errors that are no property of a file's content; not every system has all of them."""
HINDRANCES = (
    *(os.strerror(number) for name in SYSTEM_ERRORS if (number := getattr(errno, name, None))),
    *("out of memory", "unsupported version"),
)
"""English messages of PostgreSQL's programs when the system makes them fail, or a file of a later version does.
:meth:`devstack.services.postgres.Postgres.reading` runs them in English."""
NO_COMMAND = 125
"""The lowest exit code of a command that could not be run, or that a signal has ended: those of engines, of sh(1)."""


@contextlib.contextmanager
def programs(stack: Stack) -> Iterator[None]:
    """Have PostgreSQL's programs, also while the database does not run.

    :raises NotChecked: there are none.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(stack.db.programs_at_hand())
        except StackError as error:
            raise NotChecked(error.why or error.what, error.evidence[:5], error.fix) from None
        yield


@contextlib.contextmanager
def judged(stack: Stack, wrong: str, *, own: bool = False) -> Iterator[None]:
    """Say of a file what it means that one of PostgreSQL's programs fails to read it.

    :param wrong: what to say where the file is to blame.
    :param own: whether this environment has made the file.
    :raises NotChecked: something else is to blame.
    :raises Wrong: the file is to blame.
    """
    try:
        yield
    except StackError as error:
        evidence = error.evidence[:5] or [error.why]
        if hindrance := _hindrance(stack, error, own=own):
            raise NotChecked(hindrance, evidence, error.fix) from None
        raise Wrong(wrong, evidence) from None


def _hindrance(stack: Stack, error: StackError, *, own: bool) -> str:
    """Return why a program could not do its work, where that is not the file's fault; empty where it is."""
    if isinstance(error, ContentError):
        return ""
    if not isinstance(error, CommandError):
        return error.what
    if error.exited < 0 or error.exited >= NO_COMMAND:
        return f"the program that reads it ended with exit code {error.exited}"
    text = "\n".join(error.evidence)
    if found := next((words for words in HINDRANCES if words in text), ""):
        return f"the program that reads it was hindered: {found}"
    # an engine's own refusal has no exit code that tells it from the program's
    if not stack.context.read(stack.db.reading(["pg_restore", "--version"], own=own)).ok:
        return "PostgreSQL's programs do not run"
    return ""


def read_sql(digested: Digested, outline: Outline) -> None:
    """Read SQL, compressed by gzip or not, from beginning to end.

    :raises Wrong: gzip's own checks fail.
    """
    for chunk in sql_chunks(digested):
        outline.add(chunk)


def sql_chunks(digested: Digested) -> Iterator[bytes]:
    """Yield the SQL in a file, decompressed if need be, in UTF-8 and with line feeds.

    :raises Wrong: gzip's own checks fail, or it is broken UTF-16.
    """
    try:
        yield from converted(_plain_chunks(digested))
    except UnicodeDecodeError as error:
        raise Wrong(f"it begins as UTF-16, and can't be read as that: {error.reason}") from None


def _plain_chunks(digested: Digested) -> Iterator[bytes]:
    from isal import igzip, isal_zlib

    buffered = io.BufferedReader(digested, CHUNK)
    if buffered.peek(2)[:2] != b"\x1f\x8b":
        yield from chunks(buffered)
        return
    try:
        # a file that is cut off raises EOFError at its end, https://docs.python.org/3/library/gzip.html
        yield from chunks(igzip.IGzipFile(fileobj=buffered, mode="rb"))
    except (EOFError, igzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]
        raise Wrong(f"its compression is broken: {error}") from None


def read_archive(stack: Stack, digested: Digested) -> None:
    """Have pg_restore read a custom dump from beginning to end: its list alone is at the beginning.

    :raises NotChecked: pg_restore could not do its work.
    :raises Wrong: pg_restore can't read it.
    """
    command = stack.db.reading(["pg_restore", "-f", "/dev/null"])
    with judged(stack, "pg_restore can't read it"):
        stack.context.stream_in(command, chunks(io.BufferedReader(digested, CHUNK)), "read the dump")


def read_directory(stack: Stack, path: Path) -> None:
    """Have pg_restore read a directory dump.

    :raises NotChecked: pg_restore could not do its work.
    :raises Wrong: pg_restore can't read it.
    """
    with judged(stack, "pg_restore can't read it"), archive(stack, path, ["-f", "/dev/null"], "read the dump"):
        pass
