"""A conversation with psql as the superuser: it needs nothing but the service's own programs, wherever that runs."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterable, Iterator
from typing import IO, Any

from devstack.errors import StackError
from devstack.services.postgres import Postgres

SETTINGS = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '60s'"
"""What a database's own settings must not decide; a table that somebody keeps locked is not waited for without end."""


class SessionEnded(Exception):
    """psql ended: a statement failed, or the server went away. Why is in the error at the session's end."""


class Session:
    """One open psql. A statement that fails ends it."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._in = stdin
        self._out = stdout

    def run(self, sql: str) -> list[str]:
        """Run statements; the lines that they answer.

        :raises SessionEnded: one failed.
        """
        self._send(f"{sql};\n")
        return self._answer()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """The rows of a query."""
        answer = self.run(f"SELECT coalesce(jsonb_agg(to_jsonb(q)), '[]') FROM ({query}) q")
        rows: list[dict[str, Any]] = json.loads(answer[0])
        return rows

    def value(self, query: str) -> Any:
        """The one value of a query's one row."""
        (row,) = self.rows(query)
        (value,) = row.values()
        return value

    def copy_in(self, statement: str, chunks: Iterable[bytes]) -> None:
        """Feed rows in COPY's text format to a ``COPY … FROM STDIN``."""
        self._send(f"{statement};\n")
        with contextlib.suppress(BrokenPipeError):  # explained at the end
            for chunk in chunks:
                self._in.write(chunk)
        self._send("\\.\n")
        self._answer()

    def _send(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._in.write(text.encode())
            self._in.flush()

    def _answer(self) -> list[str]:
        mark = secrets.token_hex(8)
        self._send(f"SELECT '{mark}';\n")
        lines: list[str] = []
        for line in self._out:
            text = line.decode(errors="replace").rstrip("\n")
            if text == mark:
                return lines
            lines.append(text)
        raise SessionEnded


@contextlib.contextmanager
def session(db: Postgres, database: str, what: str) -> Iterator[Session]:
    """A session as the superuser on a database.

    :raises StackError: a statement failed, or the server went away; ``what`` says what it was for.
    """
    ended = False
    with db.context.talk(db.admin(database), what) as (stdin, stdout):
        try:
            opened = Session(stdin, stdout)
            opened.run(SETTINGS)
            yield opened
        except SessionEnded:
            ended = True
    if ended:  # with exit code 0
        raise StackError(f"could not {what}", why="psql ended too early")
