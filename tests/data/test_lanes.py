"""Large tables are filled by several sessions: what is a row and what is not, and that nothing is lost by it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devstack.data.dumptext import LONG, Rows, Sql, pieces
from devstack.data.lanes import LARGE, Lane
from devstack.data.session import Session, SessionEnded, background, session
from devstack.errors import CommandError
from tests.data.conftest import Data

TRAP = b"COPY public.trap (n) FROM stdin;\n1\n\\.\n"
DUMP = b"".join(
    [
        b"SET standard_conforming_strings = on;\n-- it's a comment\n",
        b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_$\n" + TRAP + b"$_$;\n",
        b"COMMENT ON TABLE t IS 'it''s\n" + TRAP + b"';\n",
        b"COMMENT ON TABLE t IS E'it\\'s\n" + TRAP + b"';\n",
        b'CREATE TABLE "a$b$\n' + TRAP + b'" (n integer);\n',
        b"/* /* nested */ '\n" + TRAP + b"*/\n",
        b'COPY public."T ;$$ ""x" (a, "B b") FROM stdin;\n',
        b"1\tit's\n2\t$_$\n\\\\.\n3\tCOPY public.trap (n) FROM stdin;\n\\.\n",
        b"COPY public.empty  FROM stdin;\n\\.\n\n",
        b"SELECT pg_catalog.setval('s', 1, true);\n",
    ]
)


def split(chunks: list[bytes]) -> list[Sql | Rows]:
    found: list[Sql | Rows] = []
    for piece in pieces(chunks):
        last = found[-1] if found else None
        if isinstance(piece, Rows) and isinstance(last, Rows) and last.statement == piece.statement:
            found[-1] = Rows(piece.statement, last.text + piece.text)
        elif isinstance(piece, Sql) and isinstance(last, Sql):
            found[-1] = Sql(last.text + piece.text)
        else:
            found.append(piece)
    return found


@settings(max_examples=300, deadline=None)
@given(cuts=st.sets(st.integers(1, len(DUMP) - 1), max_size=40))
def test_only_rows_are_rows_wherever_the_stream_is_cut(cuts: set[int]) -> None:
    at = [0, *sorted(cuts), len(DUMP)]
    found = split([DUMP[a:b] for a, b in itertools.pairwise(at)])
    assert b"".join(piece.text for piece in found) == DUMP
    (rows,) = (piece for piece in found if isinstance(piece, Rows))
    assert rows.statement == b'COPY public."T ;$$ ""x" (a, "B b") FROM stdin;\n'
    assert rows.text == b"1\tit's\n2\t$_$\n\\\\.\n3\tCOPY public.trap (n) FROM stdin;\n"


@pytest.mark.parametrize(
    "before", [b"SET standard_conforming_strings = off;\n", b'COPY public."a\nb" (n) FROM stdin;\n1\n\\.\n']
)
def test_what_can_not_be_told_apart_stays_together(before: bytes) -> None:
    assert split([before, DUMP]) == [Sql(before + DUMP)]


def test_a_long_row_comes_in_pieces_and_is_not_taken_for_the_end() -> None:
    row = b"x" * (2 * LONG) + b"\\" + b"\\.\n"  # a backslash in the text, and a full stop
    dump = [b"COPY t (a) FROM stdin;\n", row[: 2 * LONG + 1], row[2 * LONG + 1 :], b"1\n\\.\nSELECT 1;\n"]
    found = list(pieces(dump))
    assert [piece.whole for piece in found if isinstance(piece, Rows)] == [False, True, True]
    assert b"".join(piece.text for piece in found if isinstance(piece, Rows)) == row + b"1\n"
    assert found[-1] == Sql(b"SELECT 1;\n")


FILLED = f"""
CREATE FUNCTION trap() RETURNS text LANGUAGE sql AS $$
SELECT '
COPY public.big (n) FROM stdin;
1
\\.
'
$$;
CREATE TABLE big (n int PRIMARY KEY, text text NOT NULL, doubled int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO big SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, {4 * LARGE // 330}) n;
CREATE TABLE wide (n int, bytes bytea);
INSERT INTO wide SELECT n, decode(repeat(md5(n::text), {LONG // 12}), 'hex') FROM generate_series(1, 4) n;
INSERT INTO wide SELECT n, '\\x5c2e0a' FROM generate_series(5, 50) n;
"""
LEFT = "DROP TABLE big, wide; DROP FUNCTION trap(); DROP FUNCTION IF EXISTS good(int)"


@pytest.fixture
def filled(rich: Data) -> Iterator[Data]:
    rich.sql(FILLED)
    yield rich
    rich.sql(LEFT)


@pytest.mark.slow
def test_a_large_table_comes_back_whole_by_several_sessions(filled: Data) -> None:
    before = filled.print_of()
    path = filled.backup()
    data = filled.backup("--data-only")
    filled.sql("DELETE FROM big WHERE n % 2 = 0; UPDATE wide SET bytes = ''")
    done = filled.json("data.restore", "--file", path.name)
    assert filled.print_of() == before
    assert done["compared"]
    filled.json("data.restore", "--file", data.name)
    assert filled.print_of() == before


@pytest.mark.slow
def test_rows_that_another_session_refuses_end_the_restore(filled: Data) -> None:
    filled.sql(
        "CREATE FUNCTION good(n int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';"
        "ALTER TABLE big ADD CHECK (good(n));"
        "CREATE OR REPLACE FUNCTION good(n int) RETURNS bool LANGUAGE sql IMMUTABLE AS"
        f" 'SELECT n < {3 * LARGE // 330}'"
    )
    path = filled.backup()
    before = filled.print_of()
    filled.refused("data.restore", "--file", path.name, says="violates check constraint")
    assert filled.print_of() == before
    assert [name for name in filled.databases() if "restore" in name] == []


class Stopped(Exception):
    pass


def wait_in(sql: Session) -> bool:
    """Wait for a long statement; return whether the session's files were closed before it ended."""
    with contextlib.suppress(SessionEnded):
        sql.run("SELECT pg_sleep(300)")
        raise AssertionError("the statement ran to its end")
    time.sleep(0.3)  # as a thread may take to get on
    return sql._out.closed


@pytest.mark.slow
def test_the_files_of_a_session_are_closed_once_no_thread_reads_them(rich: Data) -> None:
    """Python crashes otherwise, so that a backup whose pg_dump was killed ended without a word."""
    db = rich.open_stack().db
    with pytest.raises(Stopped), session(db, "nina", "wait") as sql, background(sql) as thread:
        waiting = thread.submit(wait_in, sql)
        raise Stopped
    assert not waiting.result(0)


@pytest.mark.slow
def test_a_thread_that_fills_a_table_ends_before_its_session(rich: Data) -> None:
    with ThreadPoolExecutor(1) as thread:
        lane = Lane(rich.open_stack(), "nina", thread, "", "owner")
        waiting = thread.submit(wait_in, lane._sql)
        lane._done = waiting  # type: ignore[assignment]
        with contextlib.suppress(Stopped):
            lane.close(Stopped())
        assert not waiting.result(0)


@pytest.mark.slow
def test_a_session_passes_on_the_end_of_another_one(rich: Data) -> None:
    db = rich.open_stack().db
    with (
        pytest.raises(CommandError, match="could not read the first") as raised,
        session(db, "nina", "read the first") as first,
        session(db, "nina", "read the second"),
    ):
        first.run("SELECT no_such_column")
    assert "no_such_column" in "\n".join(raised.value.evidence)
