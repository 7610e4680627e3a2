"""Plain SQL dumps: what their beginning and end say of them."""

from __future__ import annotations

import codecs
import itertools
import re
import secrets
from collections.abc import Iterable, Iterator

HEAD = 1 << 16
TAIL = 1 << 12
RESTRICTED = 1000
"""Bytes in which a dump's own restriction begins."""
HEADER = b"-- PostgreSQL database dump\n"
TRAILER = b"-- PostgreSQL database dump complete\n"
RESTRICT = re.compile(rb"^\\restrict (\w+)$", re.MULTILINE)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks, one of which begins a file in UTF-16."""

OTHERS = {
    b"-- PostgreSQL database cluster dump": "a dump of a whole cluster (pg_dumpall), not of one database",
    b"-- MySQL dump": "a dump of MySQL",
    b"-- MariaDB dump": "a dump of MariaDB",
    b"PRAGMA foreign_keys": "a dump of SQLite",
}
"""What begins a dump that is no PostgreSQL database's."""

ZERO = "SQL with a zero byte in it: psql reads that otherwise than it is written"


class Outline:
    """The beginning, the end and the size of a dump's SQL, gathered while it passes."""

    def __init__(self) -> None:
        self.count = 0
        self.head = b""
        self.tail = b""
        self.has_zero = False

    def add(self, chunk: bytes) -> None:
        self.count += len(chunk)
        self.has_zero = self.has_zero or b"\0" in chunk
        if len(self.head) < HEAD:
            self.head += chunk[: HEAD - len(self.head)]
        self.tail = chunk[-TAIL:] if len(chunk) >= TAIL else (self.tail + chunk)[-TAIL:]

    @property
    def from_pg_dump(self) -> bool:
        return HEADER in self.head[:200].replace(b"\r\n", b"\n")

    @property
    def server_version(self) -> str:
        found = re.search(rb"^-- Dumped from database version (\S+)", self.head, re.MULTILINE)
        return found[1].decode(errors="replace") if found else ""

    @property
    def restrict_token(self) -> bytes:
        """Key of the dump's own restriction; empty if it has none."""
        return restrict_token(self.head)

    def problem(self) -> str:
        """What shows that it is not a whole dump of pg_dump; empty if nothing does."""
        if not self.from_pg_dump:
            return "it does not begin as pg_dump's SQL does"
        if self.has_zero:
            return f"it is {ZERO}"
        tail = self.tail.replace(b"\r\n", b"\n")
        token = self.restrict_token
        if TRAILER not in tail or (token and b"\\unrestrict " + token not in tail):
            return "it is cut off: the line that ends every dump of pg_dump is missing"
        return ""

    def other(self) -> str:
        """What it is instead of a PostgreSQL database's SQL; empty if that is not known."""
        for mark, what in OTHERS.items():
            if mark in self.head[:1000]:
                return what
        if b"\0" in self.head:
            return "binary data of an unknown kind"
        return ZERO if self.has_zero else ""


def converted(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield SQL as pg_dump writes it: in UTF-8 without a byte order mark, its lines ended by a line feed.

    Line ends are converted where the first line ends in CR LF. A terminal has then put a carriage return before each
    line feed (``docker exec -t``), or a program on Windows has; carriage returns in rows are escaped in a dump.

    :raises UnicodeDecodeError: it begins with the mark of UTF-16, and is not.
    """
    start, stream = _start(chunks, len(codecs.BOM_UTF8))
    if start.startswith(UTF16):
        decoded = (text.encode() for text in codecs.iterdecode(stream, "utf-16"))
        start, stream = _start(decoded, len(codecs.BOM_UTF8))
    if start.startswith(codecs.BOM_UTF8):
        next(stream)  # which is the start
        stream = itertools.chain([start[len(codecs.BOM_UTF8) :]], stream)
    start, stream = _start(stream, HEAD, until=b"\n")
    yield from _with_line_feeds(stream) if start.partition(b"\n")[0].endswith(b"\r") else stream


def _start(chunks: Iterable[bytes], size: int, until: bytes = b"") -> tuple[bytes, Iterator[bytes]]:
    """Return the first ``size`` bytes or more, or those up to and with ``until``, and everything with them first."""
    stream, start = iter(chunks), b""
    for chunk in stream:
        start += chunk
        if len(start) >= size or (until and until in chunk):
            break
    return start, itertools.chain([start], stream)


def _with_line_feeds(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        chunk = held + chunk
        held = b"\r" if chunk.endswith(b"\r") else b""  # its line feed may be in the next one
        yield chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n")
    yield held


def restricted(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Yield a dump's SQL in a restriction of our own, in which psql obeys no backslash command but its end: one that
    the dump, which does not know our random key, can't write. The dump's own restriction is left out: psql takes no
    second one.

    https://www.postgresql.org/docs/current/app-psql.html, \\restrict
    """
    own = secrets.token_hex(16).encode()
    yield b"\\restrict " + own + b"\n"
    stream, held = iter(chunks), b""
    for chunk in stream:
        held += chunk
        if len(held) >= RESTRICTED:
            break
    if token := restrict_token(held):
        held = RESTRICT.sub(b"", held, count=1)
    end = b"\n\\unrestrict " + token
    again = b"\n\\restrict " + token
    """After the ``\\connect`` of a dump that was made with --create."""
    for chunk in itertools.chain([b""], stream):
        if not token:
            yield held + chunk
            held = b""
            continue
        # the end's line may lie across two chunks: as many bytes as it has are held back
        held = (held + chunk).replace(end + b"\n", b"\n\n").replace(again + b"\n", b"\n\n")
        yield held[: -len(end) - 2]
        held = held[-len(end) - 2 :]
    yield re.sub(re.escape(end) + rb"\n?\Z", b"\n", held) if token else b""
    yield b"\n\\unrestrict " + own + b"\n"


def restrict_token(head: bytes) -> bytes:
    """Return what pg_dump has psql restricted by, from 15.14, 16.10, 17.6 and 18 on (CVE-2025-8714)."""
    found = RESTRICT.search(head[:RESTRICTED])
    return found[1] if found else b""
