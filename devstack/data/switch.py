"""Putting another database under the name in use, in a moment, with the way back open.

Clients through PgBouncer wait meanwhile. In session mode their connections are cut (a paused pool would wait for
each client to leave), in transaction mode they stay. https://www.pgbouncer.org/usage.html#process-controlling-commands
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from devstack import console
from devstack.data import journal, kept
from devstack.data.journal import Journal
from devstack.data.session import Session, session
from devstack.errors import StackError
from devstack.services import NotReady, wait_until_answers
from devstack.services.postgres import identifier, literal

if TYPE_CHECKING:
    from devstack.stack import Stack

PAUSE = 3.0
"""Seconds that transactions get to end before their clients are cut off."""
ANSWER = 10.0
"""Seconds that the new database may take to answer."""
RENAMING = "nv renames databases"
"""Name by which a session that renames databases is known to the server."""


def databases(stack: Stack) -> set[str]:
    with session(stack.db, "postgres", "list the databases") as sql:
        return {row["datname"] for row in sql.rows("SELECT datname FROM pg_database")}


def final_databases(stack: Stack) -> set[str]:
    """Return the databases that there are once no renaming of a command that has ended is on its way any more: what it
    has sent, the server carries out whether or not it is still there."""
    with session(stack.db, "postgres", "look at what a restore has renamed") as sql:
        mine = f"application_name = {literal(RENAMING)} AND usename = current_user"
        sql.end_others(mine, "the renaming of databases does not end")
        return {row["datname"] for row in sql.rows("SELECT datname FROM pg_database")}


def swap(stack: Stack, plan: Journal) -> float:
    """Give the incoming database the name in use; the seconds in which clients had none.

    From then on clients may write to it, so it keeps the name, also if it does not answer as it should.

    :raises StackError: it could not be done; :func:`devstack.data.recovery.give_up` has the one before in use then.
    """
    journal.write(stack, plan)
    began = time.monotonic()
    with _clients_held(stack):
        _rename(stack, plan)
    try:
        _answers(stack)
    except NotReady as error:
        reason = str(error).splitlines()[0]
        console.note(f"the other database is in use, but clients do not reach it yet: {reason}; see inv health")
    return time.monotonic() - began


def open_again(stack: Stack) -> None:
    """Let clients in to whatever has the name in use."""
    with session(stack.db, "postgres", "let clients in again") as sql:
        sql.run(f"ALTER DATABASE {identifier(stack.settings.db.name)} ALLOW_CONNECTIONS true")
    _tell_pooler(stack, "RESUME")


def _rename(stack: Stack, plan: Journal) -> None:
    """Rename both databases in one transaction, and mark the one that had the clients as kept."""
    closed, incoming = plan.database, plan.incoming
    with session(stack.db, "postgres", "put the restored database in its place") as sql:
        sql.run(f"SET application_name = {literal(RENAMING)}")
        # nobody new first: a client that comes back at once can't starve this
        sql.run(f"ALTER DATABASE {identifier(closed)} ALLOW_CONNECTIONS false")
        oid = sql.value(f"SELECT oid::bigint FROM pg_database WHERE datname = {literal(closed)}")
        marks = kept.statements(stack, oid, plan.outgoing, plan.why)
        _empty(sql, [closed, incoming])
        pairs = [(closed, plan.outgoing), (incoming, closed)]
        renames = "; ".join(f"ALTER DATABASE {identifier(a)} RENAME TO {identifier(b)}" for a, b in pairs)
        # what comes in is open again in the same moment that it has the name; what goes stays closed, so that
        # nobody writes to it by mistake
        sql.run(f"BEGIN; {renames}; {marks}; ALTER DATABASE {identifier(closed)} ALLOW_CONNECTIONS true; COMMIT")


def _empty(sql: Session, names: list[str]) -> None:
    """Cut off everybody on these databases, and wait until they are gone."""
    which = f"datname IN ({', '.join(map(literal, names))})"
    sql.end_others(which, "the database is still in use, and was not changed")


@contextlib.contextmanager
def _clients_held(stack: Stack) -> Iterator[None]:
    """PgBouncer's clients wait for the time of this, and go on whatever happens."""
    if stack.settings.pgb.pool_mode == "session" or not _pause(stack):
        _tell_pooler(stack, "KILL")
    try:
        yield
    except BaseException:
        open_again(stack)
        raise
    _tell_pooler(stack, "RESUME")


def _pause(stack: Stack) -> bool:
    """Whether all transactions ended in time."""
    waiting = threading.Thread(target=_tell_pooler, args=(stack, "PAUSE"), daemon=True)
    waiting.start()
    waiting.join(PAUSE)
    return not waiting.is_alive()


def _tell_pooler(stack: Stack, verb: str) -> None:
    """An admin command on the database in use; none if PgBouncer does not run or has not met it."""
    import psycopg2

    if not stack.context.states(stack.names)[stack.pgb.name].running:
        return
    with contextlib.suppress(psycopg2.Error, StackError):
        connection = stack.pgb.console()
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"{verb} {identifier(stack.settings.db.name)}")
        finally:
            connection.close()


def _answers(stack: Stack) -> None:
    """A query on the way that clients take."""
    pooled = stack.context.states(stack.names)[stack.pgb.name].running
    wait_until_answers((stack.pgb if pooled else stack.db).answers, seconds=ANSWER, failed=lambda: "")
