"""Reading a dump from beginning to end, whatever its layout."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.container import CHUNK
from devstack.data.archives import archive
from devstack.data.sqltext import Outline
from devstack.data.streams import Digested, chunks
from devstack.errors import StackError

if TYPE_CHECKING:
    from devstack.stack import Stack


class Wrong(Exception):
    """What is wrong with a file's content."""

    def __init__(self, text: str, evidence: list[str] | None = None) -> None:
        super().__init__(text)
        self.evidence = evidence or []


def read_sql(digested: Digested, outline: Outline) -> None:
    """Read SQL, compressed by gzip or not, from beginning to end.

    :raises Wrong: gzip's own checks fail.
    """
    for chunk in sql_chunks(digested):
        outline.add(chunk)


def sql_chunks(digested: Digested) -> Iterator[bytes]:
    """The SQL in a file, decompressed if need be.

    :raises Wrong: gzip's own checks fail.
    """
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

    :raises Wrong: pg_restore can't read it.
    """
    command = stack.db.reading(["pg_restore", "-f", "/dev/null"])
    try:
        stack.context.stream_in(command, chunks(io.BufferedReader(digested, CHUNK)), "read the dump")
    except StackError as error:
        raise Wrong("pg_restore can't read it", error.evidence or [error.why]) from None


def read_directory(stack: Stack, path: Path) -> None:
    """:raises Wrong: pg_restore can't read it."""
    try:
        with archive(stack, path, ["-f", "/dev/null"], "read the dump"):
            pass
    except StackError as error:
        raise Wrong("pg_restore can't read it", error.evidence or [error.why]) from None
