"""Errors of a restore: the statement that failed, where it is in the file, why, and how to fix it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from devstack.errors import StackError
from devstack.shell import typed

if TYPE_CHECKING:
    from devstack.data.load import Source
    from devstack.data.session import Role
    from devstack.stack import Stack

PLACE = re.compile(r"psql:<stdin>:(\d+): ")
WIDTH = 300
"""Characters of a line that are shown: an INSERT may have megabytes."""
PASSWORD = re.compile(r"(password\s*=?\s*)'(?:[^']|'')*'", re.IGNORECASE)
REFUSED = ("permission denied", "must be owner", "must be superuser", "superuser can", "able to SET ROLE")
GONE = ("FATAL: ", "connection to server", "server closed the connection")
CAUSES = {
    r'schema "(.+?)" does not exist': (
        "the dump uses the schema {0}, and does not create it: pg_dump -n leaves out all other schemas",
        "dump the whole database: pg_dump without -n",
    ),
    r'role "(.+?)" does not exist': (
        "the dump names the role {0}, which this server does not have",
        "create that role first, as the superuser (inv db.shell --admin), or take the statement out of the dump",
    ),
    r'unrecognized configuration parameter "(.+?)"': (
        "this server does not know {0}: the dump was made for a newer one, or for an extension that is not loaded",
        "take that line out of the dump, or restore it into a newer PostgreSQL (db.bin_dir, db.image)",
    ),
    r"could not resize shared memory segment .*: No space left": (
        "the server has too little shared memory to build an index by several processes",
        "give it more: db.memory_mb, then inv db.restart",
    ),
    r'(?:type|access method|operator class) "(.+?)" does not exist': (
        "the dump does not create {0}: it belongs to an extension, or to a schema that is not in the dump",
        "add the extension to db.extensions and run inv db.start, or dump the whole database: pg_dump without -n",
    ),
    r"(?:function|relation|operator) (.+) does not exist": (
        "{0} is not there, or not in the search path of the function that uses it",
        "in the database that was dumped: ALTER FUNCTION … SET search_path = …, then dump it again",
    ),
}
"""Texts of server errors, each with its cause and fix."""


def is_server_gone(error: StackError) -> bool:
    """Check whether it was not PostgreSQL that refused a statement: the server ended the session, or is not there."""
    return any(text in line for line in error.evidence for text in GONE)


def located(error: StackError, name: str, line: Callable[[int], int] | None) -> StackError:
    """Return the error with the lines of the file in the place of those that psql has read.

    :param line: the file's line by psql's; None where there is none.
    """

    def place(found: re.Match[str]) -> str:
        return f"{name}:{line(int(found[1]))}: " if line else ""

    error.evidence = [PLACE.sub(place, text) for text in error.evidence]
    return error


def explained(stack: Stack, source: Source, role: Role, error: StackError) -> StackError:
    """Return the error with its cause and a fix, as far as the server's words tell, and without passwords."""
    evidence = [PASSWORD.sub(r"\1'***'", text) for text in error.evidence]
    error.evidence = [text if len(text) <= WIDTH else f"{text[:WIDTH]} …" for text in evidence]
    if any(word in line for word in REFUSED for line in error.evidence):
        return _refused(stack, source, role, error)
    for line in error.evidence:
        for pattern, (why, fix) in CAUSES.items():
            if found := re.search(pattern, line):
                names = [name.strip('"') for name in found.groups()]
                return StackError(error.what, why=why.format(*names), evidence=error.evidence, fix=fix.format(*names))
    if not any("ERROR:" in line for line in error.evidence):
        return error
    fix = "use another one: inv data.list" if source.manifest else "correct it there, or dump the database again"
    return StackError(
        error.what, why="PostgreSQL refused one of its statements", evidence=error.evidence, fix=error.fix or fix
    )


def _refused(stack: Stack, source: Source, role: Role, error: StackError) -> StackError:
    """Return the error with a way on, where the role that loads a dump may not do what the dump wants."""
    if role == "superuser":
        return error
    why = {
        "owner": f"the dump is loaded as the database's owner, {stack.settings.db.user}, who may not do this",
        "loader": "a dump that this environment has not made is loaded by a role with rights on the new database only",
    }
    return StackError(
        error.what,
        why=why[role],
        evidence=error.evidence,
        fix="as it was, its functions and checks then run as the superuser:"
        f" inv data.restore --file {typed(source.name)} --as-superuser"
        if source.is_own(stack) and not stack.db.origin
        else "take it out of the dump",
    )
