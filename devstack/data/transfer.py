"""Restoring into a database elsewhere: into a new one on that server, proven there, put in the old one's place in one
transaction. Nothing of that server's is removed: the database before stays under another name."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from devstack import console
from devstack.data import census, elsewhere, extensions, load, restore, switch
from devstack.data.catalogue import Backup
from devstack.data.elsewhere import Elsewhere
from devstack.data.load import Source
from devstack.data.manifest import now
from devstack.data.restore import Restored
from devstack.data.session import session
from devstack.errors import StackError
from devstack.services.postgres import MAINTENANCE, creating, identifier, literal

if TYPE_CHECKING:
    from devstack.stack import Stack

LEFT = """
SELECT d.datname AS name FROM pg_database d JOIN pg_roles o ON o.oid = d.datdba
 WHERE d.datconnlimit IN ({mark}, 0) AND d.datname ~ '_restore_[0-9a-f]{{8}}$' AND left(d.datname, -17) = {stem}
   AND d.datname <> {name}
   AND (o.rolsuper OR o.rolname = current_user OR o.oid = (SELECT datdba FROM pg_database WHERE datname = {name}))
   AND pg_has_role(o.oid, 'USAGE')
"""
"""Databases left by killed restores into this one: their name, connection limit and owner must match. The last 17
characters of the name are the suffix of a restore."""

LOADERS = f"""
SELECT rolname AS name FROM pg_roles r
 WHERE rolname ~ '^{elsewhere.LOADER}[0-9a-f]{{8}}$' AND rolvaliduntil < now()
   AND (SELECT rolsuper OR (rolcreaterole AND pg_has_role(r.oid, 'MEMBER')) FROM pg_roles WHERE rolname = current_user)
   AND NOT EXISTS (SELECT FROM pg_shdepend d WHERE d.refobjid = r.oid AND d.refclassid = 'pg_authid'::regclass)
"""
"""Roles that killed restores have left."""

SESSIONS = """
       FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid,
            LATERAL (SELECT m.rolsuper OR (NOT r.rolsuper AND (pg_has_role(r.oid, 'MEMBER')
                                                               OR pg_has_role('pg_signal_backend', 'MEMBER'))) AS may
                       FROM pg_roles m WHERE m.rolname = current_user) end_it
      WHERE a.datname = {name} AND a.pid <> pg_backend_pid()
"""
"""With whether this role may end them (https://www.postgresql.org/docs/current/functions-admin.html)."""

END_SESSIONS = f"SELECT count(pg_terminate_backend(a.pid)) {SESSIONS} AND may"

OTHERS = f"SELECT DISTINCT r.rolname AS who {SESSIONS} AND NOT may ORDER BY 1"


class Moved(Restored, frozen=True):
    """A restore into a database elsewhere, and the SQL that takes it back."""

    target: str
    back: str


def check(there: Stack, source: Source) -> None:
    """Refuse what can't work, before anything is touched.

    :raises StackError: the role may not, or the server can't hold what is in the dump.
    """
    db, manifest = there.db, source.manifest
    assert isinstance(db, Elsewhere)
    if manifest is None:
        raise StackError(
            f"{source.name} has no manifest to compare the restored database with",
            why="without one, nothing is put in the place of a database elsewhere",
            fix="restore it into the stack, make a backup of that, and restore that one there",
        )
    elsewhere.check_replaceable(there)
    needed = int((re.match(r"\d+", manifest.server_version) or ["0"])[0])
    if needed > db.server_major:
        raise StackError(
            f"{source.name} was made by PostgreSQL {manifest.server_version}, {db.target.server} is {db.about.version}",
            why="an older PostgreSQL can't be relied on to read a newer one's dump; nothing was touched",
            fix=f"bring that server to PostgreSQL {needed}, or copy the rows by an application",
        )
    if not db.makes_loader and not (source.signed and source.origin in ("", db.origin)):
        raise StackError(
            f"{source.name} was not made by this environment, of its own database or of that one",
            why=f"loaded by {db.about.lender}, it could do all that this role may on {db.target.server}; nothing was"
            " touched",
            fix=[
                "name a role in the URL that has CREATEROLE, or a superuser: it makes a role that loads the dump;",
                "or restore it into the stack, make a backup of that, and restore that one there",
            ],
        )
    extensions.planned(there, source)


def replace(there: Stack, source: Source, *, backed_up: bool, say: Callable[[Backup], None]) -> Moved:
    """Restore into a new database, and give it the name of the one in use; with ``backed_up`` not before there is a
    proven backup of that one, which ``say`` is told.

    :raises StackError: it could not be done; the database in use is as it was then.
    """
    began, db = now(), there.db
    assert isinstance(db, Elsewhere)
    name, safety = there.settings.db.name, ""
    if db.about.powers:
        console.note(
            f"the functions in the dump may do what {db.about.lender} may: {', '.join(db.about.powers)};"
            " a role without such rights lends them none"
        )
    with _alone(there):
        made = load.named(there, "restore", source.name)

        def fill() -> census.Census:
            return load.load(there, source, made.incoming, lambda: restore.compared(there, source, made.incoming))

        try:
            load.create(there, made.incoming)
            _try_extensions(there, source, made.incoming)
            if backed_up:
                counted, backed = restore.fill_and_back_up(there, made.incoming, fill)
                if backed:
                    say(backed)
                    safety = backed.name
            else:
                counted = fill()
            load.say_hidden(there, source, made.incoming)
            load.give(there, source, made.incoming)
            outgoing = restore.kept_name(there)
            restore.copy_properties(there, made)
            outage = _swap(there, made.incoming, outgoing)
        except BaseException:
            _drop(there, made.incoming)
            raise
    return Moved(
        source=source.name,
        database=name,
        tables=len(counted.tables),
        rows=sum(counted.tables.values()),
        kept=outgoing,
        safety=safety,
        outage=round(outage, 3),
        seconds=round((now() - began).total_seconds(), 3),
        compared=True,
        target=str(db.target),
        back=_back(name, outgoing),
    )


def _try_extensions(there: Stack, source: Source, name: str) -> None:
    """Try to create the extensions, before anything else is done.

    :raises StackError: the role may not create one.
    """
    assert source.manifest
    for extension in sorted(source.manifest.extensions):
        try:
            with session(there.db, name, f"create extension {extension}") as sql:
                (create,) = sql.run(creating(extension))
                sql.run(f"SET client_min_messages = error; BEGIN; {create} CASCADE; ROLLBACK")
        except StackError as error:
            raise StackError(
                f"{source.name} needs the extension {extension}, which can't be created for {there.db.origin}",
                why="the server does not let the role of the URL do it; the database is as it was",
                evidence=error.evidence,
                fix="name a superuser in the URL: what is restored belongs to the database's owner all the same",
            ) from None


def _back(name: str, outgoing: str) -> str:
    new = load.derived(name, f"undone_{outgoing.rpartition('_old_')[2]}")
    return (
        f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(new)};"
        f" ALTER DATABASE {identifier(outgoing)} RENAME TO {identifier(name)};"
        f" ALTER DATABASE {identifier(name)} ALLOW_CONNECTIONS true"
    )


@contextmanager
def _alone(there: Stack) -> Iterator[None]:
    """Nobody else restores into this database, from whatever machine; what a killed restore left there goes.

    :raises StackError: somebody does.
    """
    name, db = there.settings.db.name, there.db
    # long names that are truncated to the same stem have the same staging names, so they share one lock
    stem = load.derived(name, f"restore_{'0' * 8}")[:-17]
    with session(db, MAINTENANCE, f"restore {db.origin}") as sql:
        if db.server_major >= 14:
            sql.run("SET idle_session_timeout = 0")
        if not sql.value(f"SELECT pg_try_advisory_lock(hashtextextended({literal(f'nv-devstack {stem}')}, 0)) AS got"):
            raise StackError(
                f"another restore into {db.origin} is going on",
                why="it holds the lock for that, on whatever machine it runs",
                fix="wait for it",
            )
        for row in sql.rows(LEFT.format(mark=elsewhere.MARK, name=literal(name), stem=literal(stem))):
            load.discard(there, row["name"])
            console.note(f"removed {row['name']} there, left behind by a restore that was cut off")
        for row in sql.rows(LOADERS):
            sql.run(f"DROP ROLE {identifier(row['name'])}")
        yield


def _drop(there: Stack, name: str) -> None:
    """Remove the database that was being filled; why its restore failed is not hidden."""
    try:
        load.discard(there, name)
    except StackError:
        console.note(f"database {name} could not be removed there; the next restore into {there.db.origin} does it")


def _swap(there: Stack, incoming: str, outgoing: str) -> float:
    """Rename both in one transaction; the seconds in which clients had none. From its first statement on, nobody new
    comes in: a connection waits for the lock that a renaming has. Killed at whatever moment, it is done or it is not.

    :raises StackError: somebody is on the database whom this role may not cut off.
    """
    db, name = there.db, there.settings.db.name
    with session(db, MAINTENANCE, "end the sessions on the database there") as sql, ThreadPoolExecutor(1) as beside:
        if others := [row["who"] for row in sql.rows(OTHERS.format(name=literal(name)))]:
            raise _in_use(there, ", ".join(others))
        began = time.monotonic()
        renaming = beside.submit(_rename, there, incoming, outgoing)
        while not renaming.done():  # which has an end: PostgreSQL's own 5 s for sessions to go, and ours for the lock
            sql.run(END_SESSIONS.format(name=literal(name)))
            wait([renaming], timeout=0.02)
        if (error := renaming.exception()) and outgoing not in switch.databases(there):
            in_use = isinstance(error, StackError) and "being accessed by other users" in "\n".join(error.evidence)
            raise _in_use(there, "somebody who has come meanwhile") if in_use else error
    return time.monotonic() - began


def _rename(there: Stack, incoming: str, outgoing: str) -> None:
    name = there.settings.db.name
    with session(there.db, MAINTENANCE, "put the restored database in its place") as sql:
        limit = sql.value(f"SELECT datconnlimit FROM pg_database WHERE datname = {literal(name)}")
        pairs = [(name, outgoing), (incoming, name)]
        renames = "; ".join(f"ALTER DATABASE {identifier(a)} RENAME TO {identifier(b)}" for a, b in pairs)
        sql.run("SET lock_timeout = '10s'")
        sql.run(
            f"BEGIN; {renames}; ALTER DATABASE {identifier(name)} CONNECTION LIMIT {limit};"
            # nobody writes to what was put aside by mistake
            f" ALTER DATABASE {identifier(outgoing)} ALLOW_CONNECTIONS false; COMMIT"
        )


def _in_use(there: Stack, who: str) -> StackError:
    return StackError(
        f"{there.db.origin} is in use",
        why=f"the role of the URL may not end the sessions of {who}; the database is as it was",
        fix="end them there; or as a superuser there: GRANT pg_signal_backend TO the role of the URL",
    )
