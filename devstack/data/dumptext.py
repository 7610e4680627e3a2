"""A plain SQL dump taken apart into its statements, and the rows that each ``COPY … FROM stdin`` has.

Only what PostgreSQL would take for such a statement counts: one inside a function's body, a text or a comment is none
(https://www.postgresql.org/docs/current/sql-syntax-lexical.html).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

COPY = re.compile(rb'COPY (?:[^"\';$\n]|"[^"\n]*")+ FROM stdin;\n')
END_OF_ROWS = b"\\.\n"
ESCAPING = b"SET standard_conforming_strings = off;"
"""Then a backslash may hide the end of any text."""

_NAME = rb"[A-Za-z_\x80-\xff][\w\x80-\xff]*"
_PLAIN = re.compile(rb"--|/\*|(?<!\w)[eE]'|'|\"|(?<![\w$])\$(?:" + _NAME + rb")?\$")
_ENDS = {
    b"'": re.compile(rb"(?P<end>')"),  # two in a row end one text and begin the next: it comes to the same
    b'"': re.compile(rb'(?P<end>")'),
    b"e'": re.compile(rb"\\.|''|(?P<end>')", re.DOTALL),
}


class Sql(NamedTuple):
    """Statements, also ``COPY`` itself and the line that ends its rows."""

    text: bytes


class Rows(NamedTuple):
    """Rows of a ``COPY``, in its text format, one a line. One that is longer than :data:`LONG` comes in several pieces,
    all but the last of them not ``whole``."""

    statement: bytes
    text: bytes
    whole: bool = True


LONG = 1 << 20
"""Bytes of a row."""
LONGEST = 1 << 30
"""Bytes of a line of SQL: PostgreSQL takes no longer statement."""


class Lexer:
    """Whether a line of SQL begins outside of every text, name, body and comment; it sees one line after the other."""

    def __init__(self) -> None:
        self._inside = b""
        """What ends it: a quote, ``e'``, a body's ``$tag$``; ``/*`` for each comment that is open."""

    @property
    def outside(self) -> bool:
        return not self._inside

    def see(self, line: bytes) -> None:
        at = 0
        while at >= 0:
            at = self._step(line, at)

    def _step(self, line: bytes, at: int) -> int:
        """Where to go on in the line; -1 at its end."""
        if not self._inside:
            found = _PLAIN.search(line, at)
            if found is None or found[0] == b"--":
                return -1
            self._inside = found[0].lower() if found[0] in (b"E'", b"e'") else found[0]
            return found.end()
        if self._inside.startswith(b"/*"):
            found = re.compile(rb"/\*|\*/").search(line, at)
            if found:
                self._inside = self._inside + b"/*" if found[0] == b"/*" else self._inside[2:]
            return found.end() if found else -1
        if self._inside.startswith(b"$"):
            end = line.find(self._inside, at)
            if end < 0:
                return -1
            at, self._inside = end + len(self._inside), b""
            return at
        found = _ENDS[self._inside].search(line, at)
        if found is None:
            return -1
        if found["end"]:
            self._inside = b""
        return found.end()


def pieces(chunks: Iterable[bytes]) -> Iterator[Sql | Rows]:
    """A dump in pieces, in order; together they are what came in."""
    taken = _Taken()
    waiting: list[bytes] = []
    for chunk in chunks:
        waiting.append(chunk)
        if b"\n" not in chunk and not taken.gives_any and sum(map(len, waiting)) <= LONGEST:
            continue  # a line that goes on: it is put together once
        taken.held = b"".join((taken.held, *waiting))
        waiting.clear()
        yield from taken.pieces()
    taken.held = b"".join((taken.held, *waiting))
    if taken.held:
        yield Rows(taken.statement, taken.held) if taken.statement else Sql(taken.held)


class _Taken:
    """What of a dump has come in, and was not given out yet."""

    def __init__(self) -> None:
        self.held = b""
        self.statement = b""
        """The ``COPY`` whose rows come next; empty in SQL."""
        self._lexer = Lexer()
        self._plain = False
        """Whether to look no further: the rest is SQL, whatever is in it."""
        self._fresh = True
        """Whether a row begins next, not the rest of one."""

    @property
    def gives_any(self) -> bool:
        """Whether less than a line may be given out."""
        return bool(self.statement) or self._plain

    def pieces(self) -> Iterator[Sql | Rows]:
        while self.held:
            before = self.held
            piece = self._rows() if self.statement else self._sql()
            if piece and piece.text:
                yield piece
            elif self.held is before:
                return

    def _give(self, count: int) -> bytes:
        given, self.held = self.held[:count], self.held[count:]
        return given

    def _rows(self) -> Sql | Rows | None:
        statement = self.statement
        if self._fresh and self.held.startswith(END_OF_ROWS):
            self.statement = b""
            return Sql(self._give(len(END_OF_ROWS)))
        if self._fresh and END_OF_ROWS.startswith(self.held):
            return None
        end = self.held.find(b"\n" + END_OF_ROWS) + 1 or self.held.rfind(b"\n") + 1
        if end:
            self._fresh = True
            return Rows(statement, self._give(end))
        if len(self.held) > LONG:
            self._fresh = False
            return Rows(statement, self._give(len(self.held)), whole=False)
        return None

    def _sql(self) -> Sql | None:
        """Whole lines up to a ``COPY``, and that one."""
        if self._plain or (len(self.held) > LONGEST and b"\n" not in self.held):
            self._plain = True
            return Sql(self._give(len(self.held)))
        at = 0
        while (end := self.held.find(b"\n", at) + 1) > 0:
            line = self.held[at:end]
            at = end
            if self._lexer.outside and line.startswith((b"COPY ", ESCAPING)):
                self.statement = line if COPY.fullmatch(line) else b""
                self._plain = not self.statement  # a name with a line's end in it, for one
                self._fresh = True
                break
            self._lexer.see(line)
        return Sql(self._give(at)) if at else None
