"""A dump's SQL for another server: there, its roles and what they may do are not known."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from devstack.data.dumptext import COPY, ESCAPING, Lexer, Rows, pieces
from devstack.errors import StackError
from devstack.services.postgres import identifier

OWNER = re.compile(rb'(ALTER .* OWNER TO )(?:"(?:[^"]|"")+"|[^\s";]+);\s*', re.DOTALL)
DROPPED = (
    *(b"GRANT ", b"REVOKE ", b"ALTER DEFAULT PRIVILEGES "),
    *(b"SET SESSION AUTHORIZATION ", b"RESET SESSION AUTHORIZATION"),
    b"COMMENT ON EXTENSION ",  # whoever creates the extension is its owner, not always the one who restores
)
LOOKED_AT = (b"ALTER ", *DROPPED)
NEWER = b"SET transaction_timeout = 0;"
"""pg_dump writes it from version 17 on, whatever server it reads; older ones do not know it."""


def owned(chunks: Iterable[bytes], owner: str, *, major: int) -> Iterator[bytes]:
    """A dump of pg_dump in which everything belongs to one role, and that grants nothing to others, for a server of
    this major version.

    :raises StackError: its statements can't be told apart.
    """
    lexer, held, rest = Lexer(), b"", b""
    for piece in pieces(chunks):
        if isinstance(piece, Rows):
            yield piece.text
            continue
        lines = io.BytesIO(rest + piece.text).readlines()
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        kept = []
        for line in lines:
            begins = lexer.outside and not held
            if begins and (line.startswith(ESCAPING) or (line.startswith(b"COPY ") and not COPY.fullmatch(line))):
                raise StackError(
                    "the owners in this dump can't be told",
                    why="a table or column has a name with a line's end in it, or texts are escaped as of old",
                    fix="rename it, and make another backup; or restore this one by hand: docs/backups.md",
                )
            lexer.see(line)
            if held or (begins and line.startswith(LOOKED_AT)):
                held += line
                if not (lexer.outside and line.rstrip().endswith(b";")):
                    continue
                line, held = _changed(held, owner), b""
            elif begins and major < 17 and line.startswith(NEWER):
                continue
            kept.append(line)
        yield b"".join(kept)
    yield held + rest


def _changed(statement: bytes, owner: str) -> bytes:
    if statement.startswith(DROPPED):
        return b""
    if found := OWNER.fullmatch(statement):
        return found[1] + identifier(owner).encode() + b";\n"
    return statement
