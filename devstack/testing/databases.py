"""Databases for tests: clones of a template, made a step ahead, dropped behind the test's back."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from devstack.errors import StackError
from devstack.testing.claims import claim, is_claimed, release
from devstack.testing.project import stack_on, surroundings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

    from devstack.data.session import Session
    from devstack.stack import Stack
    from devstack.testing.loan import Loan
    from devstack.testing.template import Template

PREFIX = "nv_test_"
BY_FILES = 128 << 20
"""Bytes of a template from which on its files are copied. Smaller ones go through the log: that needs no checkpoints,
of which the other way takes two. https://www.postgresql.org/docs/current/sql-createdatabase.html"""


class Database:
    """A database of a test's own."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        self._own = stack
        self._stack = stack_on(stack, name)

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    @property
    def url(self) -> str:
        """Straight to PostgreSQL, in the scheme of ``api.url_scheme``: what the application takes."""
        return self._stack.api.urls(direct=True)["database_url"]

    @property
    def pooled_url(self) -> str:
        """The same through PgBouncer, which has to run: with the fixture ``nv_stack`` it does.

        :raises StackError: every name leads to the environment's own database there.
        """
        own = self._own
        if not own.pgb.leads_to_others:
            raise StackError(
                f"{self.name} can't be reached through PgBouncer",
                why=f"it can't have {own.settings.db.name!r} as a name, so that all names lead to that database",
                fix="take the database's url, which leads past it; or give db.name letters, digits and _ only",
            )
        return self._stack.api.urls()["database_url"]

    @property
    def libpq_url(self) -> str:
        """For psycopg, psql and pg_dump: no driver in its scheme."""
        return self.url_for("postgresql")

    def url_for(self, scheme: str) -> str:
        """The URL for a driver, such as ``postgresql+asyncpg``."""
        return urlsplit(self.url)._replace(scheme=scheme).geturl()

    @property
    def environment(self) -> dict[str, str]:
        """The application's variables as the stack would give them, with this database in the place of its own."""
        env = self._stack.api.environment(direct=True)
        return {name: env[name] for name in env if name not in (*self._stack.api.places(), "PYTHONUNBUFFERED")}

    def connect(self, *, autocommit: bool = False) -> Connection:
        """A psycopg2 connection as the application's role; the caller closes it."""
        with surroundings():
            connection = self._stack.db.connect()
        connection.autocommit = autocommit
        return connection


class Databases:
    """The clones of one process. They go with :meth:`close`; those of a process that was killed, with the next run."""

    def __init__(self, loan: Loan, template: Template) -> None:
        self.loan = loan
        self.template = template
        self.token = secrets.token_hex(4)
        self._path = loan.folder / "runs" / self.token
        self._count = 0
        self._ahead: tuple[str, Future[None]] | None = None
        self._drops: list[Future[None]] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="nv-devstack")
        self._opened: contextlib.ExitStack | None = None
        self._sql: Session | None = None
        with loan.turn(), surroundings():
            handle = claim(self._path)
            assert handle is not None  # it is our turn, nobody else looks after claims
            self._handle = handle
            self._open()
            self._sweep()
            self._strategy = self._choose_strategy()

    def fresh(self) -> Database:
        """A new clone. From the second one on, the next is made while its test runs.

        :raises StackError: PostgreSQL refused.
        """
        name, made = self._ahead or self._begin()
        self._ahead = None
        made.result()
        if self._count > 1:
            self._ahead = self._begin()
        return Database(self.loan.stack, name)

    def _begin(self) -> tuple[str, Future[None]]:
        self._count += 1
        name = f"{PREFIX}{self.token}_{self._count}"
        return name, self._worker.submit(self._clone, name)

    def drop(self, database: Database) -> None:
        """Have a clone removed, whoever is connected to it; soon, and at :meth:`close` at the latest."""
        self._drops = [done for done in self._drops if not done.done() or done.exception()]
        self._drops.append(self._worker.submit(self._drop, database.name))

    @contextlib.contextmanager
    def one(self) -> Iterator[Database]:
        """A clone for the time being: for fixtures of any scope."""
        database = self.fresh()
        try:
            yield database
        finally:
            self.drop(database)

    def close(self) -> None:
        """Remove what is left, and wait until it is gone.

        :raises StackError: the server could not; the next run does it.
        """
        if self._ahead:
            self._drops.append(self._worker.submit(self._drop, self._ahead[0]))
        self._drops.append(self._worker.submit(self._shut))
        self._worker.shutdown()
        problems = [problem for done in self._drops if (problem := done.exception())]
        release(self._path, self._handle, remove=not problems)
        self.template.release()
        for problem in problems:
            raise problem

    # one psql, one statement at a time: in the worker's thread, after the start

    def _clone(self, name: str) -> None:
        from devstack.services.postgres import identifier

        self._run(
            f"DROP DATABASE IF EXISTS {identifier(name)}",  # a second try
            f"CREATE DATABASE {identifier(name)} TEMPLATE {identifier(self.template.name)}"
            f" OWNER {identifier(self.loan.stack.settings.db.user)}{self._strategy}",
        )

    def _drop(self, name: str) -> None:
        from devstack.services.postgres import identifier

        self._run(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")

    def _run(self, *statements: str) -> None:
        """Run statements; once more if the session is gone, as it is after the server was restarted."""
        from devstack.data.session import SessionEnded

        for last in (False, True):
            try:
                if self._sql is None:
                    self._open()
                assert self._sql is not None
                for statement in statements:
                    self._sql.run(statement)
                return
            except SessionEnded:
                with contextlib.suppress(*([] if last else [StackError])):
                    self._shut()

    def _open(self) -> None:
        from devstack.data.session import session

        opened = contextlib.ExitStack()
        self._sql = opened.enter_context(session(self.loan.stack.db, "postgres", "make a database for a test"))
        self._opened = opened
        self._sql.run("SET client_min_messages = warning")

    def _shut(self) -> None:
        """:raises StackError: why the session has ended, if that was not on purpose."""
        opened, self._opened, self._sql = self._opened, None, None
        if opened:
            opened.__exit__(*sys.exc_info())

    def _choose_strategy(self) -> str:
        from devstack.services.postgres import literal

        assert self._sql is not None
        if self.loan.stack.db.programs.major < 15:
            return ""  # there it is always by files
        if self._sql.value(f"SELECT pg_database_size({literal(self.template.name)}) AS size") < BY_FILES:
            return " STRATEGY wal_log"
        return " STRATEGY file_copy"

    def _sweep(self) -> None:
        """Remove the clones of processes that are gone."""
        from devstack.services.postgres import identifier

        assert self._sql is not None
        pattern = f"^{PREFIX}[0-9a-f]{{8}}_[0-9]+$"
        for row in self._sql.rows(f"SELECT datname FROM pg_database WHERE datname ~ '{pattern}'"):
            name: str = row["datname"]
            token = name.removeprefix(PREFIX).partition("_")[0]
            path = self.loan.folder / "runs" / token
            if token != self.token and not is_claimed(path):
                self._sql.run(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")
        for path in (self.loan.folder / "runs").iterdir():
            if path != self._path and not is_claimed(path):
                path.unlink(missing_ok=True)
