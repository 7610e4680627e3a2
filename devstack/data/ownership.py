"""A dump's SQL for the role that loads it, the database's owner, which is no superuser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from devstack.data.dumptext import COPY, ESCAPING, Lexer, Rows, pieces
from devstack.services.postgres import identifier

OWNER = re.compile(rb'(ALTER .* OWNER TO )(?:"(?:[^"]|"")+"|[^\s";]+);\s*', re.DOTALL)
SCHEMA = re.compile(rb'CREATE SCHEMA ((?:"(?:[^"]|"")+"|[^\s";]+);\s*)', re.DOTALL)
PRIVILEGES = (b"GRANT ", b"REVOKE ", b"ALTER DEFAULT PRIVILEGES ")
ATTEMPTED = (b"CREATE PUBLICATION ", b"ALTER PUBLICATION ", b"COMMENT ON PUBLICATION ")
"""Statements that the owner is allowed or not, depending on what they are about."""
SUPERUSERS = re.compile(
    rb"(?:CREATE|ALTER|COMMENT ON) (EVENT TRIGGER|SUBSCRIPTION|FOREIGN DATA WRAPPER) "
    rb'("(?:[^"]|"")+"|[^\s";]+)|(SECURITY LABEL) '
)
"""Statements that take a superuser, whatever they are about, and that nothing else in a dump depends on."""
DROPPED = (
    *(b"SET SESSION AUTHORIZATION ", b"RESET SESSION AUTHORIZATION"),
    *(b"CREATE EXTENSION ", b"COMMENT ON EXTENSION "),  # those that the server has were created before
)
JUDGED = (
    *(b"ALTER ", b"CREATE SCHEMA ", b"CREATE EVENT ", b"CREATE SUBSCRIPTION ", b"CREATE FOREIGN DATA WRAPPER "),
    *(b"COMMENT ON EVENT ", b"COMMENT ON SUBSCRIPTION ", b"COMMENT ON FOREIGN DATA WRAPPER ", b"SECURITY LABEL "),
    *(*PRIVILEGES, *ATTEMPTED, *DROPPED),
)
"""Beginnings of the statements that are changed or left out."""
NEWER = b"SET transaction_timeout = 0;"
"""pg_dump writes it from version 17 on, whatever server it reads; older ones do not know it."""
ROWS_OR_ERROR = b"SET row_security = off;"
"""Makes a query fail rather than leave rows out. Rows are loaded before policies are there; a materialized view is
filled when they are, and its owner, whom FORCE ROW LEVEL SECURITY binds, then sees what it saw before."""


def owned(
    chunks: Iterable[bytes], owner: str, *, major: int, privileges: bool = False, left: list[str] | None = None
) -> Iterator[bytes]:
    """Yield a dump of pg_dump as one role can load it, for a server of this major version: everything belongs to that
    role, and what takes a superuser is left out.

    From where its statements can't be told apart the dump is passed on as it is: what the role may not do is then
    refused by the server.

    :param privileges: grant the privileges in the dump too, where the role may and the other roles exist.
    :param left: receives what was left out, in words.
    """
    lexer, blind = Lexer(), False
    held: list[bytes] = []
    rest: list[bytes] = []
    for piece in pieces(chunks):
        if blind or isinstance(piece, Rows):
            yield piece.text
            continue
        rest.append(piece.text)
        if b"\n" not in piece.text:
            continue
        lines = io.BytesIO(b"".join(rest)).readlines()
        rest = [] if lines[-1].endswith(b"\n") else [lines.pop()]
        kept = []
        for at, line in enumerate(lines):
            begins = lexer.outside and not held
            if begins and (line.startswith(ESCAPING) or (line.startswith(b"COPY ") and not COPY.fullmatch(line))):
                # a name with a line's end in it, texts that are escaped as of old, or another program's dump
                kept += [*lines[at:], *rest]
                blind, rest = True, []
                break
            lexer.see(line)
            if held or (begins and line.startswith(JUDGED)):
                held.append(line)
                if not (lexer.outside and line.rstrip().endswith(b";")):
                    continue
                line = _changed(b"".join(held), owner, privileges, [] if left is None else left)
                held = []
            elif begins and (line.startswith(ROWS_OR_ERROR) or (major < 17 and line.startswith(NEWER))):
                continue
            kept.append(line)
        yield b"".join(kept)
    yield b"".join([*held, *rest])


def _changed(statement: bytes, owner: str, privileges: bool, left: list[str]) -> bytes:
    if statement.startswith(DROPPED) or (statement.startswith(PRIVILEGES) and not privileges):
        return b""
    if found := SUPERUSERS.match(statement):
        what = b" ".join(filter(None, [(found[1] or found[3]).lower(), found[2]])).decode(errors="replace")
        if what not in left:
            left.append(what)
        return b""
    if found := OWNER.fullmatch(statement):
        statement = found[1] + identifier(owner).encode() + b";\n"
    if found := SCHEMA.fullmatch(statement):
        return b"CREATE SCHEMA IF NOT EXISTS " + found[1]  # one of an extension is there already
    if statement.startswith((*PRIVILEGES, *ATTEMPTED)):
        return b"DO " + _literal(b"BEGIN EXECUTE " + _literal(statement) + UNLESS_REFUSED) + b";\n"
    return statement


UNLESS_REFUSED = b"; EXCEPTION WHEN insufficient_privilege OR undefined_object THEN NULL; END"
"""End of an anonymous block; see https://www.postgresql.org/docs/current/errcodes-appendix.html."""


def _literal(text: bytes) -> bytes:
    return b"'" + text.replace(b"'", b"''") + b"'"
