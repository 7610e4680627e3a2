"""Names of files in a directory dump, which pg_restore opens wherever they lead.

``toc.dat`` is read as pg_restore of PostgreSQL 14 to 18 reads it: ``ReadHead`` and ``ReadToc`` in
https://github.com/postgres/postgres/blob/master/src/bin/pg_dump/pg_backup_archiver.c, and the name that
``_ReadExtraToc`` in pg_backup_directory.c takes after each entry. What can't be read this way is refused: an archive in
one file names no others, this one does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from devstack.errors import ContentError, StackError
from devstack.files import NotPlain, open_plain

OLDEST, LATEST = (1, 12), (1, 16)
"""Versions of the archive: PostgreSQL 9.0, and PostgreSQL 17 and 18."""
INT_BYTES = 4
TAR = 3
"""The format that is in toc.dat, also in that of a directory."""
DATA = re.compile(rb"\d{1,10}\.dat")
LARGE_OBJECTS = re.compile(rb"blobs_\d{1,10}\.toc")
"""Name of a list of large objects, since version 1.16; before it is ``blobs.toc``, whatever the entry says."""
LINES = re.compile(rb"(\d{1,10} blob_\d{1,10}\.dat\n)*")
"""Content of such a list."""


class _OtherVersion(ValueError):
    """A table of contents is of a version that is not known here."""


class _Reader:
    """Values of toc.dat, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def raw(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) != count:
            raise ValueError("it ends too early")
        return content

    def byte(self) -> int:
        return self.raw(1)[0]

    def number(self) -> int:
        sign, size = self.byte(), int.from_bytes(self.raw(INT_BYTES), "little")
        if size >= 1 << 31:
            raise ValueError("a number in it is too large")
        return -size if sign else size

    def text(self) -> bytes | None:
        count = self.number()
        if count < 0:
            return None
        content = self.raw(count)
        if b"\0" in content:
            raise ValueError("a text in it has a NUL")
        return content


def check(path: Path) -> None:
    """Check that a directory dump names no file outside of itself.

    :raises ContentError: it does, or is no such dump.
    :raises StackError: its table of contents can't be read.
    """
    name = "toc.dat"
    try:
        with os.fdopen(open_plain(path / name), "rb") as file:
            lists = _lists(_Reader(file))
        for name in sorted(lists):
            with os.fdopen(open_plain(path / name), "rb") as file:
                if not LINES.fullmatch(file.read()):
                    raise ValueError("a line in it is not the number of a large object with the name of its file")
    except _OtherVersion as error:
        raise StackError(
            f"the directory dump {path.name} is of a pg_dump that is not known here",
            why=str(error),
            fix="use another one, or make one by pg_dump -Fc: inv data.list",
        ) from None
    except (NotPlain, FileNotFoundError, ValueError) as error:
        raise ContentError(
            f"the directory dump {path.name} can't be read safely",
            why=f"{name}: {getattr(error, 'strerror', None) or error}",
            fix="use another one, or make one by pg_dump -Fc: inv data.list",
        ) from None
    except OSError as error:
        raise StackError(f"the directory dump {path.name} can't be read", why=f"{name}: {error.strerror}") from None


def _lists(read: _Reader) -> set[str]:
    """Return the names of the lists of large objects.

    :raises ValueError: another name leads out of the directory, or something can't be read.
    """
    version = _version(read)
    lists = set()
    for _ in range(read.number()):
        what, name = _entry(read, version)
        if what == b"BLOBS" and version < (1, 16):
            lists.add("blobs.toc")
        elif what == b"BLOBS" and name and LARGE_OBJECTS.fullmatch(name):
            lists.add(name.decode())
        # whatever its name, pg_restore reads that of BLOBS as a list, which names further files
        elif name and (what == b"BLOBS" or not DATA.fullmatch(name)):
            raise ValueError(f"it names a file that pg_dump does not write: {name[:200].decode(errors='replace')!r}")
    return lists


def _version(read: _Reader) -> tuple[int, int]:
    """Return the version in the header, which ends before the number of entries."""
    if read.raw(5) != b"PGDMP":
        raise ValueError("it is no table of contents of pg_dump")
    major, minor, _ = read.raw(3)
    version = (major, minor)
    if not OLDEST <= version <= LATEST:
        raise _OtherVersion(f"toc.dat has version {major}.{minor}, this is for {OLDEST[0]}.{OLDEST[1]} to {LATEST[1]}")
    size, _, kind = read.raw(3)
    if (size, kind) != (INT_BYTES, TAR):
        raise ValueError("it is not that of a directory")
    if version >= (1, 15):
        read.byte()  # the compression
    else:
        read.number()
    for _ in range(7):
        read.number()  # when it was made
    for _ in range(3):
        read.text()  # the database, and the versions of the server and of pg_dump
    return version


def _entry(read: _Reader, version: tuple[int, int]) -> tuple[bytes | None, bytes | None]:
    """Return what an entry is, and the name of its file."""
    read.number()  # its number
    read.number()  # whether it has data
    for _ in range(3):
        read.text()  # two numbers of the object, and its name
    what = read.text()
    read.number()  # the section
    for _ in range(6 if version >= (1, 14) else 5):
        read.text()  # three statements, the schema, the tablespace, the access method
    if version >= (1, 16):
        read.number()  # the kind of relation
    read.text()  # the owner
    read.text()  # whether it is WITH OIDS
    while read.text() is not None:
        pass  # what it depends on
    return what, read.text()
