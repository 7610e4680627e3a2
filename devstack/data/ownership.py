"""A dump's SQL for the role that loads it, which is no superuser, into a new database."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct, field

from devstack.data.dumptext import COPY, ESCAPING, Lexer, Rows, pieces
from devstack.services.postgres import identifier

NAME = rb'(?:"(?:[^"]|"")+"|[^\s";,.()]+)'
QUALIFIED = rb"%b(?:\.%b)?" % (NAME, NAME)
BEGINNING = 60
"""Bytes of a line in which the beginning of a statement is looked for."""

ROWS_OF = re.compile(rb"(?:COPY|INSERT INTO) (%b)\.(%b) " % (NAME, NAME))
COUNTER = re.compile(rb"SELECT pg_catalog\.setval\('((?:[^']|'')+)', ")
OWNER = re.compile(rb"(ALTER .* OWNER TO )" + NAME + rb"(;\s*)", re.DOTALL | re.IGNORECASE)
SCHEMA = re.compile(rb"CREATE\s+SCHEMA\s+(?:IF\s+NOT\s+EXISTS\s+)?(" + NAME + rb";\s*)", re.IGNORECASE)
POLICY = re.compile(
    rb"CREATE POLICY (" + NAME + rb") ON (" + QUALIFIED + rb")(?: AS \w+)?(?: FOR \w+)? TO (?P<roles>"
    rb"%b(?:, %b)*)" % (NAME, NAME)
)
"""As pg_dump writes it; without TO a policy is for everybody."""
CLEANING = re.compile(
    rb"DROP\s|ALTER\s.*?\s(?:DROP|DETACH)\s|SELECT\s+pg_catalog\.lo_unlink\(|CREATE OR REPLACE VIEW .*\sNULL::",
    re.DOTALL | re.IGNORECASE,
)
"""What ``pg_dump --clean`` begins with. The last is what it makes of a view that others depend on in a circle."""
PRIVILEGES = (b"GRANT ", b"REVOKE ", b"ALTER DEFAULT PRIVILEGES ")
ATTEMPTED = (
    *(b"CREATE PUBLICATION ", b"ALTER PUBLICATION ", b"COMMENT ON PUBLICATION "),
    *(b"COMMENT ON POLICY ", b"COMMENT ON SCHEMA PUBLIC ", b"ALTER SCHEMA PUBLIC "),
)
"""Statements that the owner is allowed or not, depending on what they are about and on the server's version."""
SUPERUSERS = re.compile(
    rb"(?:CREATE|ALTER|COMMENT\s+ON)\s+(EVENT\s+TRIGGER|SUBSCRIPTION|FOREIGN\s+DATA\s+WRAPPER)\s+"
    rb'("(?:[^"]|"")+"|[^\s";]+)|(SECURITY\s+LABEL)\s',
    re.IGNORECASE,
)
"""Statements that take a superuser, whatever they are about, and that nothing else in a dump depends on."""
DATABASE = b"CREATE DATABASE "
CONNECT = b"\\connect "
DROPPED = (
    *(b"SET SESSION AUTHORIZATION ", b"RESET SESSION AUTHORIZATION"),
    # those that the server has were created before
    *(b"CREATE EXTENSION ", b"ALTER EXTENSION ", b"COMMENT ON EXTENSION ", b"DROP EXTENSION "),
    # the database is there, under the name that it is to have
    *(DATABASE, b"ALTER DATABASE ", b"COMMENT ON DATABASE ", b"DROP DATABASE "),
)
JUDGED = (
    *(b"ALTER ", b"DROP ", b"CREATE SCHEMA ", b"CREATE EVENT ", b"CREATE SUBSCRIPTION ", b"CREATE FOREIGN DATA "),
    *(b"CREATE POLICY ", b"CREATE OR REPLACE VIEW ", b"SELECT PG_CATALOG.LO_UNLINK("),
    *(b"COMMENT ON EVENT ", b"COMMENT ON SUBSCRIPTION ", b"COMMENT ON FOREIGN DATA ", b"SECURITY LABEL "),
    *(*PRIVILEGES, *ATTEMPTED, *DROPPED),
)
"""Beginnings of the statements that are changed or left out."""
NEWER = {
    17: (b"SET TRANSACTION_TIMEOUT = ",),
    18: (
        b"SELECT * FROM PG_CATALOG.PG_RESTORE_RELATION_STATS(",
        b"SELECT * FROM PG_CATALOG.PG_RESTORE_ATTRIBUTE_STATS(",
    ),
}
"""What pg_dump writes from its version 17 and 18 on, by the version of the server that knows it."""
ROWS_OR_ERROR = b"SET ROW_SECURITY = OFF;"
"""Makes a query fail rather than leave rows out. Rows are loaded before policies are there; a materialized view is
filled when they are, and its owner, whom FORCE ROW LEVEL SECURITY binds, then sees what it saw before."""
SETVAL = b"SELECT PG_CATALOG.SETVAL("
ROWS = (b"COPY ", b"INSERT INTO ")
"""Beginnings of the statements that need the functions of generated columns and constraints."""
REMARKS = (b"--", b"/*")
HARMLESS = (*REMARKS, b"SET ", b"RESET ", b"SELECT PG_CATALOG.SET_CONFIG(", b"BEGIN;", b"START TRANSACTION;", b"\\")
"""Beginnings of what may stand before and between the statements of ``pg_dump --clean``."""
ENDED = (b"--", b"\\", b"COPY ")
"""Beginnings of lines that no statement goes on after: remarks, psql's own commands, and what rows follow."""
_ATOMIC = re.compile(rb"\bBEGIN\s+ATOMIC\s*\Z", re.IGNORECASE)
_ATOMIC_END = re.compile(rb"\s*END\s*;", re.IGNORECASE)
SHORT = 1 << 14
"""Bytes of a statement in which others are looked for."""
_TOKEN = re.compile(
    rb"--[^\n]*|/\*.*?\*/|\b[eE]'(?:\\.|''|[^'\\])*'|'[^']*'|\"[^\"]*\""
    rb"|(?<![\w$])(\$(?:[^\W\d]\w*)?\$).*?\1|;",
    re.DOTALL,
)


Members = Mapping[tuple[str, str], str]
"""Extensions by the schema and name of each of their tables and sequences."""


class LeftOut(Struct):
    """What of a dump was not restored, in words."""

    privileged: list[str] = field(default_factory=list)
    """Objects that only a superuser may create."""
    roles: list[str] = field(default_factory=list)
    """Policies for roles that are not there."""
    rows: list[str] = field(default_factory=list)
    """Tables of extensions whose rows are in the dump."""


class Owned:
    """A dump of pg_dump, or other SQL, as one role can load it into a new database: everything belongs to that role,
    what takes a superuser is left out, and so is what was made for the database before (DROP, CREATE DATABASE).

    A statement keeps the number of its lines, so that the server's errors name the line of the file. From where
    statements can't be told apart the dump is passed on as it is: what the role may not do is then refused by the
    server.

    :param owner: the role; empty to change only what the server does not know.
    :param major: version of the server.
    :param privileges: grant the privileges in the dump too, where the role may and the other roles exist.
    :param stands_for: role whose policies are to hold for ``owner`` too.
    :param roles: roles of the server; None if all that the dump names are there.
    :param members: tables and sequences of the extensions in the database, by schema and name, with the extension: only
        a superuser may write to them, and they have what their extension gave them.
    :param left: receives what was left out.
    :param before_rows: a line of SQL for before the first rows.
    """

    def __init__(
        self,
        owner: str,
        *,
        major: int,
        privileges: bool = False,
        stands_for: str = "",
        roles: Collection[str] | None = None,
        members: Members | None = None,
        left: LeftOut | None = None,
        before_rows: bytes = b"",
    ) -> None:
        self._owner = owner
        self._privileges = privileges
        self._stands_for = stands_for
        self._roles = roles
        self._left = left or LeftOut()
        self._unknown = tuple(begin for version, begins in NEWER.items() if major < version for begin in begins)
        self._members = members or {}
        self._skipped = ""
        """Table of an extension whose rows come next; empty otherwise."""
        self._judged = (*(JUDGED if owner else ()), *((SETVAL,) if self._members else ()), *self._unknown)
        self._before_rows = before_rows
        self.inserted = 0
        """Number of the line that is not the dump's, in what was given out; 0 if there is none yet."""
        self._given = 0
        """Lines that were given out."""
        self._lexer = Lexer()
        self._open = False
        """Whether the next line goes on with a statement."""
        self._atomic = False
        """Whether it is one with statements in it, which end within."""
        self._remark = False
        """Whether it is a comment so far."""
        self._held: list[bytes] = []
        """Lines of a statement that is judged when it is whole."""
        self._cleaning = True
        """Whether nothing was created yet."""
        self._connects = False
        """Whether the dump creates its database, and connects to it."""
        self._blind = False

    def changed(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the dump as it is to be loaded."""
        for chunk in self._pieces(chunks):
            self._given += chunk.count(b"\n")
            yield chunk

    def _pieces(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        rest: list[bytes] = []
        for piece in pieces(chunks):
            if isinstance(piece, Rows) and self._skipped:
                note(self._left.rows, self._skipped)
                yield b"\n" * piece.text.count(b"\n")
                continue
            if self._blind or isinstance(piece, Rows):
                yield piece.text
                continue
            rest.append(piece.text)
            if b"\n" not in piece.text:
                continue
            lines = io.BytesIO(b"".join(rest)).readlines()
            rest = [] if lines[-1].endswith(b"\n") else [lines.pop()]
            kept: list[bytes] = []
            for at, line in enumerate(lines):
                self._line(line, kept)
                if self._blind:
                    kept += [*lines[at + 1 :], *rest]
                    rest = []
                    break
            yield b"".join(kept)
        yield b"".join([*self._held, *rest])

    def _line(self, line: bytes, kept: list[bytes]) -> None:
        """Take a line, and append what is to be loaded of it, or of the statement that it ends."""
        begins = self._lexer.outside and not self._open
        beginning = line[:BEGINNING].lstrip().upper() if begins else b""
        if begins:
            self._remark = beginning.startswith(b"/*")
        if beginning.startswith(ROWS):
            self._insert(kept)
        if begins and (line.startswith(ESCAPING) or (line.startswith(b"COPY ") and not COPY.fullmatch(line))):
            # a name with a line's end in it, texts that are escaped as of old, or another program's dump
            self._blind = True
            kept.append(line)
            return
        if self._skipped:  # the end of its rows
            self._skipped = ""
            kept.append(b"\n")
            return
        table = member_of(line, self._members) if begins else ""
        if table and line.startswith(b"COPY "):
            self._skipped = table
            kept.append(b"\n")
            return
        self._lexer.see(line)
        self._open = self._goes_on(line, beginning)
        if self._held or table or (begins and beginning.startswith(self._judged)):
            self._held.append(line)
            if not self._open:
                kept.append(self._whole(b"".join(self._held)))
                self._held = []
        elif begins and self._owner and beginning.startswith(ROWS_OR_ERROR):
            kept.append(b"\n")
        elif begins and self._connects and line.startswith(CONNECT):
            self._connects = False
            kept.append(b"\n")
        else:
            if self._cleaning and beginning and not beginning.startswith(HARMLESS):
                self._cleaning = False
            kept.append(line)

    def _goes_on(self, line: bytes, beginning: bytes) -> bool:
        """Check whether a statement goes on after this line."""
        if not self._lexer.outside:
            return True
        if line.rstrip()[-6:].upper() == b"ATOMIC" and _ATOMIC.search(line[-BEGINNING:]):
            self._atomic = True
        elif self._atomic and _ATOMIC_END.match(line):
            self._atomic = False
        text = _without_remark(line)
        if self._remark and text.endswith(b"*/"):
            return False
        if beginning.startswith(ENDED) and (not beginning.startswith(b"COPY ") or COPY.fullmatch(line)):
            return False
        return (self._atomic or not text.endswith(b";")) if text else self._open

    def _insert(self, kept: list[bytes]) -> None:
        if self._before_rows:
            kept.append(self._before_rows + b"\n")
            self.inserted = self._given + b"".join(kept).count(b"\n")
            self._before_rows = b""

    def _whole(self, text: bytes) -> bytes:
        """Return what is to be loaded of one or more statements, with as many lines."""
        if len(text) > SHORT:
            statements = [text]
        else:
            ends = [found.end() for found in _TOKEN.finditer(text) if found[0] == b";"]
            bounds = [0, *ends[:-1], len(text)]
            statements = [text[a:b] for a, b in itertools.pairwise(bounds)]
        changed = b"".join(self._statement(statement) for statement in statements)
        return changed + b"\n" * (text.count(b"\n") - changed.count(b"\n"))

    def _statement(self, text: bytes) -> bytes:
        statement = text.lstrip()
        if table := member_of(statement, self._members):  # of pg_dump --inserts
            note(self._left.rows, table)
            return b""
        beginning = b" ".join(statement[: 2 * BEGINNING].upper().split()) + b" "
        if not beginning.startswith(self._judged):
            self._cleaning = self._cleaning and beginning.startswith(HARMLESS)
            return text
        if beginning.startswith(self._unknown):
            return b""
        if beginning.startswith(SETVAL):
            counter = COUNTER.match(statement)
            name = counter[1].replace(b"''", b"'") if counter else b""
            return b"" if member_of(b"COPY %b " % name, self._members) else text
        if self._cleaning and CLEANING.match(statement):
            return b""  # there is nothing in a new database to drop
        if beginning.startswith(DROPPED) or (beginning.startswith(PRIVILEGES) and not self._privileges):
            self._connects = self._connects or beginning.startswith(DATABASE)
            return b""
        self._cleaning = False
        if found := SUPERUSERS.match(statement):
            what = b" ".join(b" ".join(filter(None, [(found[1] or found[3]).lower(), found[2]])).split())
            note(self._left.privileged, what.decode(errors="replace"))
            return b""
        if (self._roles is not None or self._stands_for) and (found := POLICY.match(statement)):
            return self._policy(statement, found)
        if found := SCHEMA.fullmatch(statement):
            return b"CREATE SCHEMA IF NOT EXISTS " + found[1]  # one of an extension is there already
        if found := OWNER.fullmatch(statement):
            statement = text = found[1] + identifier(self._owner).encode() + found[2]
        if beginning.startswith((*PRIVILEGES, *ATTEMPTED)):
            ended = statement.rstrip()
            tried = b"DO " + _literal(b"BEGIN EXECUTE " + _literal(ended) + UNLESS_REFUSED) + b";"
            return tried + statement[len(ended) :]
        return text

    def _policy(self, statement: bytes, found: re.Match[bytes]) -> bytes:
        """Return a policy for those of its roles that are there; nothing if none is: fewer rows are seen then."""
        named = re.findall(NAME, found["roles"])
        if self._stands_for:
            own = identifier(self._stands_for).encode()
            named = [own if name in USERS else name for name in named]
        there = [name for name in named if self._roles is None or name in KEYWORDS or _plain(name) in self._roles]
        stands = self._stands_for and self._stands_for in map(_plain, there)
        granted = [*there, identifier(self._owner).encode()] if stands else there
        if granted == named:
            return statement
        if missing := b", ".join(name for name in named if name not in there):
            what = b"policy %b on %b (for %b)" % (found[1], found[2], missing)
            note(self._left.roles, what.decode(errors="replace"))
        return statement[: found.start("roles")] + b", ".join(granted) + statement[found.end() :] if there else b""


def owned(chunks: Iterable[bytes], owner: str, *, major: int, privileges: bool = False) -> Iterator[bytes]:
    """Yield a dump as :class:`Owned` changes it."""
    yield from Owned(owner, major=major, privileges=privileges).changed(chunks)


USERS = (b"CURRENT_ROLE", b"CURRENT_USER", b"SESSION_USER")
KEYWORDS = (b"PUBLIC", *USERS)
UNLESS_REFUSED = b"; EXCEPTION WHEN insufficient_privilege OR undefined_object THEN NULL; END"
"""End of an anonymous block; see https://www.postgresql.org/docs/current/errcodes-appendix.html."""


def _without_remark(line: bytes) -> bytes:
    """Return a line without white space and a comment at its end."""
    at = line.rfind(b"--")
    return line[:at].rstrip() if at >= 0 and not re.search(rb"['\"]", line[at:]) else line.rstrip()


def note(left: list[str], what: str) -> None:
    """Add a description to a list, unless it is there."""
    if what not in left:
        left.append(what)


def member_of(statement: bytes, members: Members) -> str:
    """Return the extension's table that a statement with rows is for, in words; empty if it is for none."""
    if not members or not (found := ROWS_OF.match(statement)):
        return ""
    schema, name = _plain(found[1]), _plain(found[2])
    extension = members.get((schema, name))
    return f"{schema}.{name} (extension {extension})" if extension else ""


def _plain(name: bytes) -> str:
    text = name.decode(errors="replace")
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def _literal(text: bytes) -> bytes:
    return b"'" + text.replace(b"'", b"''") + b"'"
