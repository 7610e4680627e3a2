"""pg_dump's archives, of which pg_restore says what is in them.

https://www.postgresql.org/docs/current/app-pgrestore.html
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from msgspec import Struct

from devstack.data import toc
from devstack.data.dumptext import Rows, pieces
from devstack.data.ownership import Members, member_of, note
from devstack.data.streams import chunks
from devstack.files import is_private
from devstack.services.postgres import staged
from devstack.shell import Command, argv

if TYPE_CHECKING:
    from devstack.stack import Stack

ENTRY = re.compile(r"\d+; \d+ \d+ (.*)")
EXTENSIONS = ("EXTENSION - ", "COMMENT - EXTENSION ")
SUPERUSERS = re.compile(
    r"(?:COMMENT - )?(EVENT TRIGGER|SUBSCRIPTION|FOREIGN DATA WRAPPER) (?:- )?(.*?)(?: \S+)?|(SECURITY LABEL) .*"
)
"""Entries that take a superuser, whatever they are about, and that nothing else depends on."""
ATTEMPTED = re.compile(r"(?:DEFAULT )?ACL |(?:COMMENT - )?PUBLICATION|(?:COMMENT \S+ )?POLICY ")
"""Entries that the owner is allowed or not, depending on what they are about, or that name roles."""
POLICY = re.compile(r"\d+; \d+ \d+ POLICY ")
FILLED = re.compile(r"\d+; \d+ \d+ MATERIALIZED VIEW DATA ")
PRIVILEGES = re.compile(r"\d+; \d+ \d+ (?:DEFAULT )?ACL ")
"""Lines of an archive's list that are about privileges."""
ROOM = 1 << 26
"""Bytes that a list may have."""


class Contents(Struct, frozen=True):
    """Entries of an archive for the database's owner, as lines of its list."""

    taken: list[str]
    attempted: list[str]
    left: list[str]
    """Entries that are left out, in words."""
    extensions: list[str] = []
    refreshed: list[str] = []
    """Materialized views that are to be filled last, where there are policies, which decide what they get."""
    members: list[str] = []
    """Entries with rows and sequence values of extensions, which only a superuser may load."""
    version: str = ""
    """Major version of the server that it is from."""


@contextlib.contextmanager
def settled(stack: Stack, path: Path) -> Iterator[Path]:
    """Yield an archive that nobody else can change: itself, or a copy. That of a directory names no file outside.

    :raises StackError: it does, or can't be read.
    """
    with contextlib.ExitStack() as held:
        if not is_private(path):
            path = held.enter_context(staged(stack.context, path))
        if path.is_dir():
            toc.check(path)
        yield path


@contextlib.contextmanager
def archive(stack: Stack, path: Path, words: list[str], what: str) -> Iterator[IO[bytes]]:
    """The output of pg_restore on an archive, with no database."""
    with contextlib.ExitStack() as held:
        if path.is_dir() or stack.context.host.is_root:
            path = held.enter_context(settled(stack, path))
        if path.is_dir():
            inside = held.enter_context(stack.db.inward(path))
            command = stack.db.reading(["pg_restore", "-Fd", *words, str(inside)])
        else:
            command = Command(f"{stack.db.reading(['pg_restore', '-Fc', *words])} < {argv([path])}")
        yield held.enter_context(stack.context.stream_out(command, what))


def listed(stack: Stack, path: Path, members: Members | None = None) -> Contents:
    """Return what is in an archive.

    :param members: tables and sequences of the extensions in the database that it is for.
    :raises StackError: pg_restore can't read it.
    """
    with archive(stack, path, ["-l"], "list the dump") as out:
        lines = out.read(ROOM).decode(errors="replace").splitlines()
    contents = Contents([], [], [], version=_version(lines))
    # the last word of an entry is the owner
    others = {f"{kind} {schema} {name}" for schema, name in members or () for kind in ("TABLE DATA", "SEQUENCE SET")}
    for line in lines:
        entry = (ENTRY.match(line) or [line, line])[1]
        if entry.startswith(EXTENSIONS):
            contents.extensions.append(line)
        elif entry.rpartition(" ")[0] in others:
            contents.members.append(line)
        elif found := SUPERUSERS.fullmatch(entry):
            what = " ".join(filter(None, [(found[1] or found[3]).lower(), found[2]]))
            if what not in contents.left:
                contents.left.append(what)
        elif ATTEMPTED.match(entry):
            contents.attempted.append(line)
        else:
            contents.taken.append(line)
    if any(POLICY.match(line) for line in contents.attempted):
        contents.refreshed.extend(line for line in contents.taken if FILLED.match(line))
        contents.taken[:] = [line for line in contents.taken if not FILLED.match(line)]
    return contents


def with_rows(stack: Stack, path: Path, contents: Contents, members: Members) -> list[str]:
    """Return the tables of extensions that an archive has rows of."""
    if not contents.members:
        return []
    found: list[str] = []
    with (
        list_file(stack, contents.members) as inside,
        archive(stack, path, ["-f", "-", "-L", str(inside)], "look for rows of extensions") as out,
    ):
        for piece in pieces(chunks(out)):
            # of a table without rows there is a COPY too, which nothing follows
            inserts = (line for line in piece.text.splitlines() if line.startswith(b"INSERT "))
            for statement in [piece.statement] if isinstance(piece, Rows) else inserts:
                if table := member_of(statement, members):
                    note(found, table)
    return found


@contextlib.contextmanager
def list_file(stack: Stack, lines: list[str]) -> Iterator[Path]:
    """A list for pg_restore, where it can read it (https://www.postgresql.org/docs/current/app-pgrestore.html, -L)."""
    path = stack.paths.config / f"restore-list-{secrets.token_hex(4)}"
    stack.context.write_file(path, "\n".join(lines) + "\n")
    try:
        with stack.db.inward(path) as inside:
            yield inside
    finally:
        stack.context.host.remove(path)


def _version(lines: list[str]) -> str:
    found = (re.match(r";\s+Dumped from database version: (\S+)", line) for line in lines)
    return next((match[1] for match in found if match), "")
