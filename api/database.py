"""Connections to PostgreSQL, usually through PgBouncer."""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as Connection  # noqa: N812 - psycopg2 names its class in lower case

from .errors import DatabaseUnavailableError
from .settings import login

log = logging.getLogger(__name__)

Row = dict[str, Any]
NO_ANSWER = "the database does not answer"


class Deadline:
    """A moment on the monotonic clock that everything in one session has to be done by."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())


class Session:
    """One connection, lent until a deadline. Every statement commits by itself."""

    def __init__(self, connection: Connection, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def fetch(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of the (last) statement, by column name.

        Several statements in one text are one transaction.

        :raises psycopg2.Error: what the database says about the statement.
        :raises TimeoutError: the deadline has passed; the connection can't be used any more.
        """
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            _wait(self._connection, self._deadline)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    @property
    def announced_pid(self) -> int:
        """The process id that the other end named at login."""
        return self._connection.info.backend_pid


class Database:
    """A bounded pool of connections, opened when they are needed.

    Not psycopg2's own pool: that one refuses at once when it is full and holds its lock while it connects, and
    an ordinary psycopg2 call can't be given up once the server hangs. These connections are asynchronous ones
    that the calling thread waits for, so that one deadline holds for a free place, the login, the statements.
    """

    def __init__(self, url: str, *, size: int, timeout_s: float) -> None:
        self.size = size
        self._url = url
        self._timeout_s = timeout_s
        self._places = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._active = 0
        self._closed = False

    @property
    def active(self) -> int:
        """Connections lent to a request at this moment."""
        return self._active

    @property
    def idle(self) -> int:
        """Open connections that wait for a request."""
        return len(self._idle)

    @contextmanager
    def session(self, *, timeout_s: float | None = None) -> Iterator[Session]:
        """A connection that has just answered, for at most ``timeout_s`` seconds (by default the pool's).

        A pooled connection that died (PgBouncer's KILL, a restart) is replaced without anybody noticing. It is
        asked before a statement rather than the statement repeated after: an INSERT may have happened although
        its answer was lost.

        :raises DatabaseUnavailableError: no free connection, no answer in time, a connection lost on the way.
        """
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        if not self._places.acquire(timeout=deadline.remaining()):
            raise DatabaseUnavailableError(f"all {self.size} database connections are busy")
        connection: Connection | None = None
        try:
            with self._lock:
                self._active += 1
            connection = self._live_connection(deadline)
            yield Session(connection, deadline)
        except TimeoutError:
            raise DatabaseUnavailableError(f"{NO_ANSWER} within {deadline.seconds:g} s") from None
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            raise DatabaseUnavailableError(_public_message(error), cause=_one_line(error)) from None
        finally:
            with self._lock:
                self._active -= 1
            if connection is not None:
                self._take_back(connection)
            self._places.release()

    def fetch(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> list[Row]:
        """:meth:`Session.fetch` in a session of its own."""
        with self.session(timeout_s=timeout_s) as session:
            return session.fetch(sql, parameters)

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _live_connection(self, deadline: Deadline) -> Connection:
        while (connection := self._next_idle()) is not None:
            try:
                Session(connection, deadline).fetch("SELECT 1")
            except psycopg2.Error as error:
                connection.close()
                log.debug("a database connection is replaced", extra={"fields": {"cause": _one_line(error)}})
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        return self._connect(deadline)

    def _next_idle(self) -> Connection | None:
        with self._lock:
            # the one used last: fewer stay open than there are requests at the busiest moment
            return self._idle.pop() if self._idle else None

    def _connect(self, deadline: Deadline) -> Connection:
        connection: Connection = psycopg2.connect(
            self._url, async_=True, client_encoding="UTF8", fallback_application_name="nv-api", **login(self._url)
        )
        try:
            _wait(connection, deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_back(self, connection: Connection) -> None:
        # anything but idle: a statement still runs, or the other end is gone
        usable = not connection.closed and connection.info.transaction_status == TRANSACTION_STATUS_IDLE
        with self._lock:
            if usable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _wait(connection: Connection, deadline: Deadline) -> None:
    events = {POLL_READ: select.POLLIN, POLL_WRITE: select.POLLOUT}
    while (state := connection.poll()) != POLL_OK:
        # a new one each time: the descriptor changes while libpq tries one address after the other
        poller = select.poll()
        poller.register(connection.fileno(), events[state])
        if not poller.poll(deadline.remaining() * 1000):
            raise TimeoutError


def _public_message(error: psycopg2.Error) -> str:
    """What a client may know: libpq's own words name hosts, users and paths."""
    return f"the database can't do this now (SQLSTATE {error.pgcode})" if error.pgcode else NO_ANSWER


def _one_line(error: psycopg2.Error) -> str:
    return " ".join(str(error).split())
