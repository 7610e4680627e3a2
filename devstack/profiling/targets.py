"""What can be put under load: PostgreSQL directly and through PgBouncer, the application; all on this machine."""

from __future__ import annotations

import http.client
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psycopg2

from devstack.errors import StackError, UsageError
from devstack.profiling.load import REQUEST_SECONDS, Channel, Target
from devstack.services.api import ANSWER_BYTES, request_path
from devstack.services.postgres import literal
from devstack.settings import reachable_address

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

    from devstack.stack import Stack

KEYS = ("db", "pgb", "api")
DIRECT, POOLED = "PostgreSQL directly", "through PgBouncer"
BROKEN = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""A connection that the server has closed while nothing was on its way."""


class Session:
    """A connection to the database, over which the same transaction goes again and again, in one message each."""

    def __init__(self, connection: Connection, transaction: str) -> None:
        self._connection = connection
        self._transaction = transaction

    def send(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(self._transaction)

    def cancel(self) -> None:
        self._connection.cancel()

    def close(self) -> None:
        self._connection.close()


class Http:
    """A connection to the application, kept open between requests."""

    def __init__(self, address: str, port: int, path: str) -> None:
        self._connection = http.client.HTTPConnection(address, port, timeout=REQUEST_SECONDS)
        self._path = path

    def send(self) -> None:
        try:
            status = self._get()
        except BROKEN:
            self._connection.close()  # a browser would open another one as well
            status = self._get()
        if status >= 400:
            raise StackError(f"{self._path} answered {status}")

    def _get(self) -> int:
        self._connection.request("GET", request_path(self._path))
        response = self._connection.getresponse()
        while response.read(min(ANSWER_BYTES, 1 << 20)):
            pass
        return response.status

    def cancel(self) -> None:
        """Its answer is not waited for any longer than :data:`REQUEST_SECONDS`."""

    def close(self) -> None:
        self._connection.close()


def transaction(sql: str, *, write: bool) -> str:
    """The statement in a transaction of its own, which only reads unless told otherwise."""
    begin, end = ("BEGIN", "COMMIT") if write else ("BEGIN READ ONLY", "ROLLBACK")
    # on a line of its own: the statement may end in a comment
    return f"{begin}; SET LOCAL statement_timeout = '{REQUEST_SECONDS}s';\n{sql}\n; {end}"


def check_bind(stack: Stack) -> None:
    """:raises UsageError: the stack is open to others than this machine."""
    for path, bind in stack.settings.open_binds.items():
        raise UsageError(
            f"dev.load is for a stack on this machine alone; {path} is {bind}",
            why=f"it is from {stack.settings.origin(path)}; a load on an address that others reach may hit theirs",
            fix=f"{path}: 127.0.0.1, then inv dev.up",
        )


def check_path(path: str) -> None:
    """:raises UsageError: it is not a path of the application."""
    if not re.fullmatch(r"/[!-~]*", path) or path.startswith("//"):
        raise UsageError(
            f"--path {path} is not a path of the application", fix="only the path, as in --path '/memories?limit=5'"
        )


def check_sql(stack: Stack, sql: str, *, write: bool) -> None:
    """Try the statement once, where it can't end its transaction, and take back what it did.

    :raises UsageError: it does not work.
    """
    attempt = f"DO {literal(f'BEGIN EXECUTE {literal(sql)}; END')}"
    connection = stack.db.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN" if write else "BEGIN READ ONLY")
            cursor.execute(f"SET LOCAL statement_timeout = '{REQUEST_SECONDS}s'")
            cursor.execute(attempt)
            cursor.execute("ROLLBACK")
    except psycopg2.Error as error:
        reads = isinstance(error, psycopg2.errors.ReadOnlySqlTransaction)
        raise UsageError(
            f"--sql {sql[:200]} does not work",
            why=stack.context.mask(str(error).partition("\nCONTEXT")[0].partition("\nQUERY")[0].strip()),
            fix="add --write, and it is carried out for real, again and again" if reads else "correct it",
        ) from None
    finally:
        connection.close()


def of(stack: Stack, keys: Sequence[str], sql: str, path: str, *, write: bool) -> list[Target]:
    """The targets with these keys."""
    statement = transaction(sql, write=write)
    address = reachable_address(stack.api.bind)

    def session(*, pooled: bool) -> Channel:
        return Session(stack.db.connect(pooled=pooled), statement)

    known = {
        "db": Target("db", DIRECT, lambda: session(pooled=False)),
        "pgb": Target("pgb", POOLED, lambda: session(pooled=True)),
        "api": Target("api", f"GET {path}", lambda: Http(address, stack.api.port, path)),
    }
    return [known[key] for key in keys]
