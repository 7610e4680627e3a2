"""Kept copies: the databases, and directories of whole clusters, that restores keep for ``data.undo``.

Which of them ``data.undo`` takes is in the environment's state (``previous.json``). Whether a database or a directory
is one of ours at all is decided by its mark, a parameter of the database (``nv.kept``) or a file in the directory. It
holds this environment's signature (:mod:`devstack.data.signing`) of the name and, for a database, of its OID. So none
is forgotten when that file is lost, when a command is killed, or when a cluster comes back with a database that was
kept in it; and what merely has such a name is never removed.

Why a mark can't be forged: the application's role may own databases, and write a mark or copy one, but it can't sign.
A copied mark is worth nothing on a database with another OID or another name, nor on another directory. The role can
have a database of its own bear both, by dropping the kept copy and creating one in its place. It gains nothing by that:
what it may drop and create is its own. A mark on the database in use counts for nothing, as it has the wrong name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from devstack import console
from devstack.data import journal, load, signing
from devstack.data.journal import Previous
from devstack.data.manifest import now, stamp
from devstack.data.session import session
from devstack.errors import StackError
from devstack.services.postgres import identifier, literal

if TYPE_CHECKING:
    from devstack.paths import Paths
    from devstack.services.postgres import Postgres
    from devstack.stack import Stack

PARAMETER = "nv.kept"
"""Parameter of a database that holds its mark. No program of ours or of PostgreSQL's reads it otherwise."""
FILE = "nv-kept.json"
"""Name of the file that holds the mark of a directory."""

SUFFIX = re.compile(r"_(old_\d{8}_\d{6}(?:_[0-9a-f]{4})?)")
"""End of the name of a database that was kept."""
TIME = re.compile(r"\d{8}-\d{6}")
"""End of the name of a directory that was kept."""

DATABASES = f"""
SELECT d.oid::pg_catalog.int8 AS oid, d.datname AS name,
       CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT') THEN pg_catalog.pg_database_size(d.oid) END
           AS bytes,
       (SELECT pg_catalog.substr(p, pg_catalog.length('{PARAMETER}=') + 1)
          FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) p
         WHERE s.setdatabase = d.oid AND s.setrole = 0 AND p LIKE '{PARAMETER}=%' LIMIT 1) AS mark
  FROM pg_catalog.pg_database d
 WHERE d.datname LIKE '%\\_old\\_%'
"""


class Mark(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a database or a directory was kept, with the signature that says that it was this environment."""

    when: str
    why: str
    signature: str = ""


class Kept(Struct, frozen=True, kw_only=True):
    """A database or directory that was kept, or has the name of one."""

    name: str
    directory: bool
    bytes: int | None
    """Size; None where that is not known."""
    mark: Mark | None
    """Its mark; None where it has none of this environment."""
    for_undo: bool = False
    """Whether it is the one that ``data.undo`` puts back."""

    @property
    def is_left_over(self) -> bool:
        """Whether it is ours, and nothing needs it any more."""
        return self.mark is not None and not self.for_undo


def sign_database(stack: Stack, oid: int, name: str, why: str) -> str:
    """Return the mark of a database that is about to get a name.

    :raises StackError: the signing key is damaged.
    """
    return _signed(stack, ["database", oid, name], why)


def mark_directory(stack: Stack, directory: str, name: str, why: str) -> None:
    """Write the mark of a directory that is about to get a name.

    :raises StackError: it can't be written.
    """
    stack.db.folders.finish(directory, FILE, _signed(stack, ["directory", name], why))


def _signed(stack: Stack, identity: list[object], why: str) -> str:
    mark = Mark(when=stamp(now()), why=why)
    signature = signing.seal(stack, [*identity, mark.when, mark.why])
    return msgspec.json.encode(msgspec.structs.replace(mark, signature=signature)).decode()


def _read(paths: Paths, text: str | None, identity: list[object]) -> Mark | None:
    """Return a mark; None if it is none, or not this environment's of this very database or directory."""
    try:
        mark = msgspec.json.decode(text or "", type=Mark)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None
    return mark if signing.is_sealed(paths, [*identity, mark.when, mark.why], mark.signature) else None


def databases(db: Postgres, rows: Iterable[Mapping[str, Any]]) -> list[Kept]:
    """Return the kept databases among those that :data:`DATABASES` has found, without what they are needed for."""
    found = []
    for row in rows:
        name, paths = str(row["name"]), db.context.paths
        mark = _read(paths, row["mark"], ["database", row["oid"], name])
        end = SUFFIX.search(name)
        named = end is not None and name == load.derived(db.settings.db.name, end[1])
        if name != db.settings.db.name and (mark or named):
            found.append(Kept(name=name, directory=False, bytes=row["bytes"], mark=mark))
    return found


def directories(db: Postgres) -> list[Kept]:
    """Return the kept directories of previous clusters; ``for_undo`` is not set yet.

    :raises StackError: they can't be listed.
    """
    found = []
    for name in sorted(db.folders.names() - {db.data.name}):
        if not (name.startswith(f"{db.data.name}-") and TIME.fullmatch(name.removeprefix(f"{db.data.name}-"))):
            continue
        try:
            text = db.folders.read(name, FILE)
        except OSError:  # no regular file: nothing of ours
            text = ""
        mark = _read(db.context.paths, text, ["directory", name])
        found.append(Kept(name=name, directory=True, bytes=None, mark=mark))
    return found


def judged(paths: Paths, found: list[Kept]) -> list[Kept]:
    """Return the same copies, and of each whether it is the one that ``data.undo`` puts back: what the state says, or,
    where that is lost, the one that was kept last."""
    if recorded := journal.read_previous(paths):
        wanted = (recorded.name, recorded.directory)
    else:
        marked = [(copy.mark.when, copy.name, copy.directory) for copy in found if copy.mark]
        wanted = max(marked)[1:] if marked else ("", False)
    return [msgspec.structs.replace(copy, for_undo=(copy.name, copy.directory) == wanted) for copy in found]


def find(stack: Stack, *, sizes: bool = False) -> list[Kept]:
    """Return all that was kept, or has the name of it; while the server does not run, no databases, and no directories
    in the volume of a container engine.

    :param sizes: whether to add up the files of directories.
    :raises StackError: they can't be listed.
    """
    db = stack.db
    found: list[Kept] = []
    running = stack.context.states([db.name])[db.name].running
    if running:
        with session(db, "postgres", "list the databases that were kept") as sql:
            found += databases(db, sql.rows(DATABASES))
    if running or not stack.context.runtime.contained:
        found += directories(db)
    if sizes:
        found = [
            msgspec.structs.replace(copy, bytes=db.folders.size(copy.name)) if copy.directory else copy
            for copy in found
        ]
    return judged(stack.paths, found)


def previous(stack: Stack) -> Previous | None:
    """Return what ``data.undo`` puts back; None if there is nothing."""
    if recorded := journal.read_previous(stack.paths):
        return recorded
    for copy in find(stack):
        if copy.for_undo and (mark := copy.mark):
            of = stack.settings.db.name
            return Previous(name=copy.name, of=of, when=mark.when, why=mark.why, directory=copy.directory)
    return None


def clean_up(stack: Stack, *, dry: bool = False) -> list[Kept]:
    """Remove kept copies that are no longer needed. Do nothing while a restore is unfinished, as the database in use
    may then have the name of a kept copy.

    :returns: what is gone, or what would go in a dry run.
    """
    if stack.context.dry or stack.paths.journal.exists() or stack.paths.swap.exists():
        return []
    try:
        copies = [copy for copy in find(stack, sizes=True) if copy.is_left_over]
    except StackError as error:
        console.note(f"what earlier restores kept is not looked for: {error.what}: {error.why}")
        return []
    return copies if dry else _remove(stack, copies)


def _remove(stack: Stack, copies: Iterable[Kept]) -> list[Kept]:
    """Remove kept copies. Say of each that can't be removed why; it keeps its mark, and a later command tries again.

    :returns: those that are gone.
    """
    gone = []
    for copy in copies:
        try:
            if copy.directory:
                # the mark last: of what is left when this is killed is still known that it is ours
                stack.db.folders.remove(copy.name, last=FILE)
            else:
                load.drop(stack, copy.name)
        except (StackError, OSError) as error:
            why = "; ".join(error.evidence[:2]) or error.why if isinstance(error, StackError) else str(error)
            console.note(
                f"{copy.name}, which an earlier restore kept, could not be removed: {why}; data.list --kept shows it,"
                " the next restore and data.cleanup try again"
            )
        else:
            gone.append(copy)
    return gone


def settle(stack: Stack, done: Previous) -> None:
    """Record the copy that a restore or an undo kept, and remove all earlier ones."""
    journal.write_previous(stack, done)
    try:
        _remove(stack, [copy for copy in find(stack) if copy.is_left_over])
    except StackError as error:  # the restore is done: what it leaves is found by the next command
        console.note(f"what earlier restores kept was not removed: {error.what}: {error.why}")


def statements(stack: Stack, oid: int, outgoing: str, why: str) -> str:
    """Return the SQL that marks the database with an OID, whose name is ``outgoing`` by now, and takes the mark from
    the one that has the name in use."""
    mark = literal(sign_database(stack, oid, outgoing, why))
    return (
        f"ALTER DATABASE {identifier(stack.settings.db.name)} RESET {PARAMETER};"
        f" ALTER DATABASE {identifier(outgoing)} SET {PARAMETER} = {mark}"
    )
