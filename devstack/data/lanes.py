"""Filling a large table by several sessions at once: most of a restore is the server's reading of rows, and each
session has one core."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from devstack.data.dumptext import Rows, pieces
from devstack.data.session import Role, Session, SessionEnded, session
from devstack.errors import StackError
from devstack.services.postgres import literal

if TYPE_CHECKING:
    from devstack.stack import Stack

LARGE = 4 << 20
"""Bytes of rows that a table has before others help."""

WAITING = 8
"""Pieces that may wait for a session."""

SECONDS = 60.0
"""For a table to be there, whose rows are being read already."""

HEADER = re.compile(
    rb"^(?:SET \w+ = [^;\n]*|SELECT pg_catalog\.set_config\('search_path', '', false\));$", re.MULTILINE
)
"""What a dump sets at its beginning, and each session needs."""

HEAD = 4096
"""Bytes of a dump in which all of those are."""

TABLE = re.compile(rb'COPY ((?:[^"\s(]|"(?:[^"]|"")*")+)')


class Lane:
    """A session that takes rows."""

    def __init__(self, stack: Stack, name: str, beside: ThreadPoolExecutor, first: str, role: Role) -> None:
        self._held = contextlib.ExitStack()
        self._sql: Session = self._held.enter_context(session(stack.db, name, "restore rows", role=role))
        if role == "superuser" and not stack.db.origin:
            self._sql.restrict()  # the other sessions are
        self._sql.run(first)
        self._beside = beside
        self._rows: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._done: Future[None] | None = None

    def begin(self, statement: bytes) -> None:
        """Take rows of a table from now on.

        :raises StackError: it is not there.
        """
        found = TABLE.match(statement)
        deadline = time.monotonic() + SECONDS
        while found and self._sql.value(f"SELECT to_regclass({literal(found[1].decode())}) IS NULL"):
            # the first session has its rows already, so it is about to be there
            if time.monotonic() > deadline:
                raise StackError(f"table {found[1].decode()} is not there after {SECONDS:g} s")
            time.sleep(0.01)
        self._done = self._beside.submit(
            self._sql.copy_in, statement.decode().rstrip(";\n"), iter(self._rows.get, None)
        )

    def take(self, rows: bytes) -> bool:
        """Whether there was room for them.

        :raises SessionEnded: the server has refused others.
        """
        if self._done and self._done.done():
            self._done.result()
        with contextlib.suppress(queue.Full):
            self._rows.put_nowait(rows)
            return True
        return False

    def end(self) -> None:
        """Wait until all is in the table.

        :raises SessionEnded: the server refused something.
        """
        assert self._done
        while not self._done.done():
            with contextlib.suppress(queue.Full):
                self._rows.put(None, timeout=0.1)
                break
        self._done.result()

    def close(self, error: BaseException | None = None) -> None:
        """End the session, at once if there was an ``error``.

        :raises StackError: the server refused something.
        """
        while True:  # whatever was not taken yet
            with contextlib.suppress(queue.Full):
                self._rows.put_nowait(None)
                break
            with contextlib.suppress(queue.Empty):
                self._rows.get_nowait()
        if self._done and error:  # the thread has let go of the files before these are closed
            self._sql.kill()
            wait([self._done])
        elif self._done:
            with contextlib.suppress(SessionEnded):  # the session's own end says why
                self._done.result()
        self._held.__exit__(type(error) if error else None, error, None)


@contextlib.contextmanager
def shared(stack: Stack, name: str, chunks: Iterable[bytes], *, role: Role) -> Iterator[Iterator[bytes]]:
    """A dump for the session that restores it into database ``name``, without the rows that others take meanwhile: they
    come into a large table only about in their order. ``role`` is who the others are.

    :raises StackError: one of them could not.
    """
    lanes: list[Lane] = []
    with ThreadPoolExecutor(max(1, _others())) as beside:

        def more(header: bytes) -> list[Lane]:
            while len(lanes) < _others():
                sets = b"\n".join(HEADER.findall(header)).decode()
                lanes.append(Lane(stack, name, beside, f"{sets}\nSET synchronous_commit = off", role))
            return lanes

        try:
            yield _kept(chunks, more)
        except SessionEnded:
            _close(lanes)
            raise StackError("could not restore rows", why="psql ended too early") from None
        except BaseException as error:
            for lane in lanes:
                with contextlib.suppress(StackError, SessionEnded, type(error)):
                    lane.close(error)
            raise
        _close(lanes)


def _others() -> int:
    return min(4, os.cpu_count() or 1) - 1


def _close(lanes: list[Lane]) -> None:
    errors: list[StackError] = []
    for lane in lanes:
        try:
            lane.close()
        except StackError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _kept(chunks: Iterable[bytes], more: Callable[[bytes], list[Lane]]) -> Iterator[bytes]:
    """What is left for the first session."""
    header, size, lanes, whole = b"", 0, list[Lane](), True
    for piece in pieces(chunks):
        if not isinstance(piece, Rows):
            for lane in lanes:
                lane.end()
            size, lanes = 0, []
            if len(header) < HEAD:
                header += piece.text
            yield piece.text
            continue
        size += len(piece.text)
        if size > LARGE and not lanes:
            lanes = more(header)
            for lane in lanes:
                lane.begin(piece.statement)
        # the rest of a row goes where its beginning went
        if not (whole and piece.whole and any(lane.take(piece.text) for lane in lanes)):
            yield piece.text
        whole = piece.whole
