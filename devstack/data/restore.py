"""Restoring: into a new database, proven there, put in the old one's place; the old one stays for the way back."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from devstack import console
from devstack.data import backup, census, extensions, kept, load, privileged, switch
from devstack.data.catalogue import Backup
from devstack.data.journal import Journal
from devstack.data.load import Mismatch, Source
from devstack.data.manifest import now, stamp
from devstack.data.recovery import give_up, guarded, settle
from devstack.data.session import session
from devstack.errors import StackError
from devstack.services.postgres import identifier, literal

if TYPE_CHECKING:
    from devstack.stack import Stack

SAFETY = "pre-restore"
"""The label of the backup that is made before a restore."""

OWN_PROPERTIES = """
SELECT statement FROM (
    SELECT 1 AS step, n, CASE
               -- lists are taken over as they are, never as SQL: their text may be anything that its author liked
               WHEN name IN ('search_path', 'temp_tablespaces', 'local_preload_libraries', 'session_preload_libraries')
               THEN format('SELECT pg_catalog.set_config(%L, %L, true); %s SET %I FROM CURRENT', name, value, of, name)
               ELSE format('%s SET %I TO %L', of, name, value) END AS statement
      FROM (SELECT n, split_part(setting, '=', 1) AS name, substr(setting, strpos(setting, '=') + 1) AS value,
                   CASE WHEN setrole = 0 THEN format('ALTER DATABASE {new}')
                        ELSE format('ALTER ROLE %I IN DATABASE {new}', pg_get_userbyid(setrole)) END AS of
              FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase,
                   unnest(setconfig) WITH ORDINALITY AS c(setting, n)
             WHERE d.datname = {old}) p
    UNION ALL
    SELECT 2, 0, format('REVOKE ALL ON DATABASE {new} FROM PUBLIC, %I', pg_get_userbyid(datdba))
      FROM pg_database WHERE datname = {old} AND datacl IS NOT NULL
    UNION ALL
    SELECT 3, 0, format('GRANT %s ON DATABASE {new} TO %s%s', a.privilege_type,
                     CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(a.grantee)) END,
                     CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
      FROM pg_database, aclexplode(datacl) a WHERE datname = {old}
    UNION ALL
    SELECT 4, 0, format('COMMENT ON DATABASE {new} IS %L', shobj_description(oid, 'pg_database'))
      FROM pg_database WHERE datname = {old} AND shobj_description(oid, 'pg_database') IS NOT NULL
    UNION ALL
    SELECT 5, 0, format('ALTER DATABASE {new} CONNECTION LIMIT %s', datconnlimit)
      FROM pg_database WHERE datname = {old} AND datconnlimit <> -1
) q ORDER BY step, n, statement
"""
"""What a database has that is in no dump of it: parameters, privileges, comment, limit."""


ATTEMPT = """
BEGIN
    EXECUTE {statement};
EXCEPTION WHEN insufficient_privilege THEN
    PERFORM set_config('nv.left', concat_ws('; ', nullif(current_setting('nv.left', true), ''), {statement}), false);
END
"""
"""A statement that a role which is no superuser may not be allowed; those that it was not are in ``nv.left``."""


class Restored(Struct, frozen=True):
    """What a restore came to. ``outage`` is the time in seconds in which clients could not reach a database."""

    source: str
    database: str
    tables: int
    rows: int
    kept: str
    safety: str
    outage: float
    seconds: float
    compared: bool
    """Whether its rows were counted and compared with a manifest."""


def check_target(stack: Stack, source: Source) -> None:
    """Refuse what can't work, before anything is touched.

    :raises StackError: an extension is missing, a table, or room on the disk.
    """
    name, manifest = stack.settings.db.name, source.manifest
    extensions.planned(stack, source)
    with session(stack.db, name, f"read database {name}") as sql:
        tables = set(census.table_names(sql))
        used = sql.value("SELECT pg_database_size(current_database())")
    if manifest and source.kind == "data" and (absent := sorted(manifest.tables.keys() - tables)):
        raise StackError(
            f"{source.name} holds rows alone, and their tables are not in database {name}",
            why=f"missing: {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}; nothing was touched",
            fix="restore a full or a schema backup first, or run the migrations",
        )
    _check_room(stack, source, used)


def _check_room(stack: Stack, source: Source, used: int) -> None:
    """:raises StackError: the disk has clearly too little room for a second database."""
    manifest = source.manifest
    needed = manifest.database_bytes if manifest and source.kind == "full" else used
    free, _ = stack.db.room() or (needed, needed)
    if free < needed:
        raise StackError(
            "there is not enough room to restore beside the database in use",
            why=f"{console.size(free)} are free, {console.size(needed)} are needed; nothing was touched",
            fix=f"free some space on the disk of {stack.db.place}",
        )


def back_up_first(stack: Stack) -> Backup | None:
    """A proven backup of what is there; None if there is nothing yet.

    :raises StackError: it could not be made; then there is no restore.
    """
    with session(stack.db, stack.settings.db.name, "look at the database") as sql:
        if not census.table_names(sql):
            return None
    return backup.create(stack, backup.Request(label=SAFETY, safety=True))


def replace(stack: Stack, source: Source, *, backed_up: bool, say: Callable[[Backup], None]) -> Restored:
    """Restore into a new database and put it in the place of the one in use; with ``backed_up`` not before there is a
    proven backup of that one, which ``say`` is told.

    :raises StackError: it could not be done; the database in use is as it was then.
    """
    began = now()
    made = load.begin(stack, "restore", source.name)
    safety = ""

    def fill() -> census.Census:
        return load.load(stack, source, made.incoming, lambda: compared(stack, source, made.incoming))

    with contextlib.ExitStack() as guard:
        try:
            if backed_up:
                counted, backed = fill_and_back_up(stack, made.incoming, fill)
                if backed:
                    say(backed)
                    safety = backed.name
            else:
                counted = fill()
            load.say_hidden(stack, source, made.incoming)
            load.give(stack, source, made.incoming)
            copy_properties(stack, made)
            check_login(stack, made)
            plan = msgspec.structs.replace(made, phase="switch", outgoing=kept_name(stack))
            guard.enter_context(guarded(stack))
            outage = switch.swap(stack, plan)
        except BaseException:
            give_up(stack)
            raise
        settle(stack, plan)
    if source.manifest and source.manifest.needs_superuser and not source.as_superuser:
        changed = privileged.shown(source.manifest.needs_superuser)
        console.note(
            f"given to {stack.settings.db.user}, or left out, as it is not {source.manifest.owner}'s: {changed}"
        )
    return Restored(
        source=source.name,
        database=made.database,
        tables=len(counted.tables),
        rows=sum(counted.tables.values()),
        kept=plan.outgoing,
        safety=safety,
        outage=round(outage, 3),
        seconds=round((now() - began).total_seconds(), 3),
        compared=source.manifest is not None,
    )


def fill_and_back_up(
    stack: Stack, incoming: str, fill: Callable[[], census.Census]
) -> tuple[census.Census, Backup | None]:
    """Both at the same time: the one reads the database in use, the other writes to one that nobody uses yet."""
    with ThreadPoolExecutor(1) as beside:
        filling = beside.submit(fill)
        try:
            backed = back_up_first(stack)
            return filling.result(), backed
        except BaseException:
            with contextlib.suppress(StackError):
                load.discard(stack, incoming)  # ends the filling, which would be waited for
            raise


def compared(stack: Stack, source: Source, name: str) -> census.Census:
    if source.manifest is None:
        return load.count(stack, name)
    try:
        return load.check_counts(stack, source.manifest, name)
    except Mismatch as error:
        raise StackError(
            f"{source.name} holds something else than its manifest says",
            why="the database in use was not touched",
            evidence=error.lines,
            fix="use another one: inv data.list",
        ) from None


def copy_properties(stack: Stack, made: Journal) -> None:
    within = identifier(made.incoming).replace("%", "%%").replace("'", "''")  # a part of format()'s own literal
    query = OWN_PROPERTIES.format(old=literal(made.database), new=within)
    with session(stack.db, "postgres", "take over the database's own settings") as sql:
        for row in sql.rows(query):
            sql.run(_attempt(row["statement"]) if stack.db.origin else f"BEGIN; {row['statement']}; COMMIT")
        if stack.db.origin and (left := sql.value("SELECT current_setting('nv.left', true)")):
            console.note(f"this role may not take over from the database before: {left}")


def check_login(stack: Stack, made: Journal) -> None:
    """Check that the application's role can log in to the new database, before clients are sent there.

    :raises StackError: it can't.
    """
    with session(stack.db, made.incoming, "log in to the restored database", role="owner") as sql:
        sql.run("SELECT 1")


def _attempt(statement: str) -> str:
    return f"DO {literal(ATTEMPT.format(statement=literal(statement)))}"


def kept_name(stack: Stack) -> str:
    """A name by the second; with a number where that is taken."""
    there = switch.databases(stack)
    name = stack.settings.db.name
    suffix = f"old_{now():%Y%m%d_%H%M%S}"
    while (free := load.derived(name, suffix)) in there:
        suffix = f"old_{now():%Y%m%d_%H%M%S}_{secrets.token_hex(2)}"
    return free


class Undone(Struct, frozen=True):
    """What an undo came to: whose state is back, and where the other one is."""

    of: str
    kept: str
    outage: float


def undo(stack: Stack) -> Undone:
    """Put back the database that the last restore, or the last undo, put aside.

    :raises StackError: there is none.
    """
    previous = kept.previous(stack)
    name = stack.settings.db.name
    if previous and previous.directory:
        from devstack.data import cluster

        return cluster.undo(stack, previous)
    if previous is None or previous.of != name or previous.name not in switch.databases(stack):
        raise StackError(
            "there is nothing to undo",
            why=f"no restore has put a database {name} aside" if previous is None else f"{previous.name} is gone",
            fix="restore a backup instead: inv data.list, inv data.restore --file NAME",
        )
    plan = Journal(
        operation="undo",
        about=previous.why.removeprefix("undo of ").removeprefix("restore of "),
        phase="switch",
        database=name,
        incoming=previous.name,
        outgoing=kept_name(stack),
        began=stamp(now()),
        pid=os.getpid(),
    )
    with session(stack.db, "postgres", "open the database that was put aside") as sql:
        sql.run(f"ALTER DATABASE {identifier(previous.name)} ALLOW_CONNECTIONS true")
    with guarded(stack):
        try:
            outage = switch.swap(stack, plan)
        except BaseException:
            give_up(stack)
            raise
        settle(stack, plan)
    return Undone(previous.why, plan.outgoing, round(outage, 3))
