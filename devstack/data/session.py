"""A conversation with psql: it needs nothing but the service's own programs, wherever that runs."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import msgspec

from devstack.container import Talk
from devstack.errors import StackError
from devstack.files import load_json
from devstack.services.postgres import PINNING, PSQL, Postgres, check_text, creating, identifier, literal
from devstack.shell import Command

SETTINGS = """
SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '60s';
SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings
 WHERE name OPERATOR(pg_catalog.=) 'idle_session_timeout'
"""
"""What a database's own settings must not decide; a table that somebody keeps locked is not waited for without end."""

PIN = f"""
{PINNING};
SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind'
"""
"""Settings that the application must not decide in a session that is not its own. A table that it replaces by a view
while we look is refused, where the server knows how (from 14.13, 15.8, 16.4 and 17 on: CVE-2024-7348)."""

EMPTY = 10.0
"""Seconds that sessions which were ended may take to be gone."""

Role = Literal["superuser", "reader", "owner", "loader"]
"""Role of a session. The superuser runs fixed statements of ours on the catalog; the reader reads the application's
tables; the loader loads a dump of others; the owner, the application's role, does everything else."""


class SessionEnded(Exception):
    """psql ended: a statement failed, or the server went away. Why is in the error at the session's end."""

    def __init__(self, session: Session) -> None:
        super().__init__("psql ended")
        self.session = session


class Session:
    """One open psql. A statement that fails ends it."""

    def __init__(self, talk: Talk) -> None:
        self._in = talk.stdin
        self._out = talk.stdout
        self.kill = talk.kill
        """End psql at once. The server may carry out the statement all the same."""

    def restrict(self) -> None:
        r"""Have psql obey no backslash command from here on: rows and names are not ours (CVE-2025-8714).

        https://www.postgresql.org/docs/current/app-psql.html, \\restrict
        """
        self._send(f"\\restrict {secrets.token_hex(16)}\n")

    def run(self, sql: str) -> list[str]:
        """Run statements; the lines that they answer.

        :raises SessionEnded: one failed.
        """
        self._send(f"{sql};\n")
        return self._answer()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query.

        :raises StackError: the answer is none; the server may be an external one.
        """
        answer = self.run(f"SELECT coalesce(jsonb_agg(to_jsonb(q)), '[]') FROM ({query}) q")
        try:
            return msgspec.convert(load_json("\n".join(answer)), list[dict[str, Any]])
        except ValueError as error:
            why = f"its answer is not the rows of a query: {error}"
            raise StackError("the server does not answer as expected", why=why) from None

    def row(self, query: str) -> dict[str, Any]:
        """Return the one row of a query.

        :raises StackError: there is none, as of a database that somebody has just dropped.
        """
        rows = self.rows(query)
        if len(rows) != 1:
            why = f"a query for one row has {len(rows)}: what it is about may have been dropped meanwhile"
            raise StackError("the server does not answer as expected", why=why, fix="try again")
        return rows[0]

    def value(self, query: str) -> Any:
        """Return the one value of a query's one row."""
        (value,) = self.row(query).values()
        return value

    def end_others(self, which: str, problem: str) -> None:
        """End other sessions on the server, and wait until they are gone.

        :param which: a condition on ``pg_stat_activity``.
        :param problem: what these sessions are in the way of.
        :raises StackError: one goes on.
        """
        deadline = time.monotonic() + EMPTY
        others = f"FROM pg_stat_activity WHERE {which} AND pid <> pg_backend_pid()"
        while self.value(f"SELECT count(pg_terminate_backend(pid)) {others}"):
            if time.monotonic() > deadline:
                raise StackError(
                    "sessions on the server do not end",
                    why=f"{problem}; they were told to {EMPTY:g} s ago",
                    fix="see who: inv db.shell --admin --command 'TABLE pg_stat_activity'",
                )
            time.sleep(0.01)

    def drop_database(self, name: str) -> None:
        """Drop a database, if there is one, whoever is connected to it. Its owner may have made a template of it, which
        can't be dropped."""
        if self.rows(f"SELECT FROM pg_database WHERE datname = {literal(name)} AND datistemplate"):
            quoted = identifier(name)
            self.run(f"ALTER DATABASE {quoted} OWNER TO CURRENT_USER; ALTER DATABASE {quoted} IS_TEMPLATE false")
        self.run(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")

    def create_extension(self, name: str, schema: str = "public") -> None:
        """Create an extension in a closed database, if it does not exist.

        :param schema: schema for its objects, unless its control file fixes another one.
        """
        statement = "\n".join(self.run(creating(name, schema)))
        self.run(f"SET client_min_messages = warning; {statement}")

    def count_rows(self, table: str, columns: str) -> int:
        """Count the rows of a table itself, without a plan of a query on it: COPY needs none.

        :param columns: the columns to copy, as a list in parentheses; empty for all.
        :raises SessionEnded: the server refused it.
        """
        self._send(f"COPY {table} {columns} TO STDOUT;\n")
        return sum(1 for _ in self._lines())

    def copy_in(self, statement: str, chunks: Iterable[bytes]) -> None:
        """Feed rows in COPY's text format to a ``COPY … FROM STDIN``."""
        self._send(f"{statement};\n")
        with contextlib.suppress(BrokenPipeError):  # explained at the end
            for chunk in chunks:
                self._in.write(chunk)
        self._send("\\.\n")
        self._answer()

    def _send(self, text: str) -> None:
        check_text(text)
        with contextlib.suppress(BrokenPipeError):
            self._in.write(text.encode())
            self._in.flush()

    def _answer(self) -> list[str]:
        return [line.decode(errors="replace").rstrip("\n") for line in self._lines()]

    def _lines(self) -> Iterator[bytes]:
        mark = secrets.token_hex(8)
        self._send(f"SELECT '{mark}';\n")
        end = f"{mark}\n".encode()
        for line in self._out:
            if line == end:
                return
            yield line
        raise SessionEnded(self)


def program(db: Postgres, role: Role) -> Callable[..., Command]:
    """Return what makes the command of one of PostgreSQL's programs, as a role."""
    return {"superuser": db.as_superuser, "reader": db.as_reader, "owner": db.as_owner, "loader": db.as_loader}[role]


@contextlib.contextmanager
def session(db: Postgres, database: str, what: str, *, role: Role = "superuser") -> Iterator[Session]:
    """Open a session on a database.

    :raises StackError: a statement failed, or the server went away; ``what`` says what it was for.
    """
    command = program(db, role)(PSQL, database)
    # names go back to psql that a dump or a server has made up: they may not hold commands of psql's
    restricted = db.restricts
    application_s = role in ("owner", "loader")
    if application_s or db.origin:
        db.check_restricts()
    if application_s:
        command = db.apart(command)
    with db.context.talk(command, what) as talk:
        opened, ended = Session(talk), False
        try:
            if restricted:
                opened.restrict()
            if not application_s:
                opened.run(PIN)
            opened.run(SETTINGS)
            yield opened
        except SessionEnded as error:
            if error.session is not opened:
                raise
            ended = True
    if ended:  # with exit code 0
        raise StackError(f"could not {what}", why="psql ended too early")


@contextlib.contextmanager
def background(sql: Session) -> Iterator[ThreadPoolExecutor]:
    """Run statements of a session in a thread, which ends with this. After an error the session is ended first, and so
    are its statements.

    Only then are the session's files closed: Python crashes when one thread closes a file that another one reads.
    """
    with ThreadPoolExecutor(1) as thread:
        try:
            yield thread
        except BaseException as error:
            if not (isinstance(error, SessionEnded) and error.session is sql):  # whose psql is about to say why
                sql.kill()
            raise
