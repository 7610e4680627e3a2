"""Rows for the user's tables: made here, written by COPY, all in one transaction."""

from __future__ import annotations

import io
import math
import secrets
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from devstack import console
from devstack.data import columns, embedding
from devstack.data.columns import MIGRATION_TABLES, ForeignKey, Table, bounds_of
from devstack.data.values import DISTINCT, ESCAPES, NULL, PROSE, TEXTS, Maker, Values
from devstack.data.words import COUNT, Words
from devstack.errors import StackError, UsageError
from devstack.services.postgres import Postgres, identifier
from devstack.shell import typed

if TYPE_CHECKING:
    from devstack.stack import Stack

MOST = 50_000_000
CHUNK = 5_000
"""Rows that are in memory at a time, twice: one part is written while the next one is made."""
PARENTS = 100_000
"""Rows of a parent that children are shared out to."""
REBUILD = 1_000
"""Rows from which on it is quicker to build an index of vectors anew than to add each row to it: three times here."""
HEADER = 24
"""Bytes of an empty row: https://www.postgresql.org/docs/current/storage-page-layout.html"""
WITH_INDEXES = 6
"""Times the least that rows with indexes, and the log of writing them, came to here."""
SETTINGS = """
SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL client_min_messages = error; SET LOCAL datestyle = 'ISO'
"""


class Request(Struct, frozen=True):
    """What is asked for: a table (empty: memories), or all of them; ``seed`` None: any."""

    rows: int
    seed: int | None = None
    table: str = ""
    all: bool = False

    def check(self) -> None:
        """:raises UsageError: it contradicts itself."""
        if not 1 <= self.rows <= MOST:
            raise UsageError(f"--rows {self.rows} can't be used", fix=f"1 to {MOST:,}")
        if self.table and self.all:
            raise UsageError("--table and --all exclude each other")


class Filled(Struct, frozen=True):
    """What a table got, and how long that took; ``index_seconds`` of these for its indexes."""

    table: str
    rows: int
    seconds: float
    index_seconds: float = 0.0


class Generated(Struct, frozen=True):
    seed: int
    tables: list[Filled]
    seconds: float


def generate(stack: Stack, request: Request) -> Generated | None:
    """Fill tables; None in a dry run.

    :raises UsageError: there is no such table, or one that can't be filled.
    :raises StackError: the server refused a row: none is there then.
    """
    import psycopg2

    request.check()
    seed = secrets.randbelow(1_000_000) if request.seed is None else request.seed
    if stack.context.dry:
        what = "every table" if request.all else request.table or "memories"
        console.out(f"# generate {request.rows:,} rows for {what} from seed {seed}")
        return None
    began = time.monotonic()
    connection = stack.db.connect()
    try:
        connection.autocommit = False
        with connection.cursor() as cursor:
            cursor.execute(SETTINGS)
            for name, value in stack.db.building().items():
                cursor.execute(f"SET LOCAL {name} = '{value}'")
            tables = [t for t in columns.read(cursor) if t.name not in MIGRATION_TABLES]
            wanted = _wanted(tables, request)
            _check_room(stack.db, wanted, request.rows)
            words = Words(seed)
            filled = []
            for table in wanted:
                values = Values(seed, table.quoted, words)
                try:
                    filled.append(_Filling(stack, connection, cursor, table, tables, values).fill(request.rows))
                except psycopg2.Error as error:
                    raise _refused(table, error) from None
            connection.commit()
    except psycopg2.Error as error:
        why = str(error).strip().partition("\n")[0]
        raise StackError("no row was generated", why=why, fix="see inv db.logs") from None
    finally:
        connection.close()
    return Generated(seed, filled, round(time.monotonic() - began, 3))


def _check_room(db: Postgres, tables: list[Table], rows: int) -> None:
    """A disk that is full can stop the server: compare the free bytes with the least that the rows take.

    :raises StackError: not even that fits.
    """
    room = db.room()
    if room is None:
        return
    vectors = sum(4 * c.modifier for t in tables for c in t.columns if c.type == "vector" and c.modifier > 0)
    least = rows * (vectors + HEADER * len(tables))
    free, _ = room
    said = f"{console.size(free)} are free in {db.place}"
    if free < least:
        raise StackError(
            f"there is not enough room for {rows:,} rows",
            why=f"{said}, the rows alone take more than {console.size(least)}",
            fix="ask for fewer: --rows; or free some space",
        )
    if free < least * WITH_INDEXES:
        console.note(f"the room may not be enough: {said}, the rows and their indexes may take most of it")


def _wanted(tables: list[Table], request: Request) -> list[Table]:
    """The tables to fill, parents before children."""
    if request.all:
        return _in_order(tables)
    name = request.table or "memories"
    found = [t for t in tables if name in (t.quoted, f"{t.schema}.{t.name}")] or [t for t in tables if name == t.name]
    if len(found) == 1:
        return found
    listed = [f"{table.schema}.{table.name}" for table in (found or tables)]
    raise UsageError(
        f"there is {'more than one' if found else 'no'} table {name}",
        evidence=listed[:20],
        fix="name one with --table schema.name, or take --all" if listed else "make tables first: inv data.migrate",
    )


def _in_order(tables: list[Table]) -> list[Table]:
    """:raises UsageError: tables need each other's rows first."""
    left, done = {table.oid: table for table in tables}, list[Table]()
    while left:
        free = [t for t in left.values() if not any(_needs(t, k) and k.parent in left for k in t.foreign_keys)]
        # a parent that a row can do without, but not yet there, is waited for as long as others can go first
        best = [t for t in free if not any(k.parent in left and k.parent != t.oid for k in t.foreign_keys)] or free
        if not best:
            names = ", ".join(table.name for table in left.values())
            raise UsageError(
                f"{names} can't be filled in any order",
                why="their foreign keys need each other's rows first",
                fix="fill them with a fixture: inv data.seed FILE",
            )
        done.append(left.pop(best[0].oid))
    return done


def _needs(table: Table, key: ForeignKey) -> bool:
    return any(table.column(name).required for name in key.columns)


class _Filling:
    """One table being filled."""

    def __init__(
        self, stack: Stack, connection: Any, cursor: Any, table: Table, tables: list[Table], values: Values
    ) -> None:
        self.stack = stack
        self.connection = connection
        self.cursor = cursor
        self.table = table
        self.names = {t.oid: t.quoted for t in tables}
        self.values = values
        self.bounds = bounds_of(table)
        self.makers: dict[str, Maker] = {}
        self.distinct: set[str] = set()
        self.vectors: list[str] = []
        self.parents: dict[str, list[tuple[str, ...]]] = {}
        """By the first column of each foreign key, the parents' keys."""
        self.prose = any(c.name in PROSE and c.type in TEXTS and not c.array and not c.made for c in table.columns)
        """Whether rows have sentences, which vectors then belong to."""

    def fill(self, rows: int) -> Filled:
        began = time.monotonic()
        self._plan(rows)
        indexes = self._take_indexes(rows) if self.vectors else []
        self._write(rows)
        built = time.monotonic()
        with ThreadPoolExecutor(1) as beside:
            for statement in [*indexes, f"ANALYZE {self.table.quoted}"]:
                if statement in indexes and sys.stderr.isatty():
                    console.note(f"{self.table.name}: building its indexes anew")
                self._wait(beside.submit(self.cursor.execute, statement))
        ended = time.monotonic()
        name = f"{self.table.schema}.{self.table.name}"
        return Filled(name, rows, round(ended - began, 3), round(ended - built, 3) if indexes else 0.0)

    # what goes into each column

    def _plan(self, rows: int) -> None:
        for key in self.table.foreign_keys:
            self._share_parents(key, rows)
        for names in self.table.unique_sets():
            self._keep_apart(names, rows)
        for column in self.table.columns:
            if column.made or column.name in self.makers:
                continue
            if column.type == "vector" and not column.array and column.modifier > 0:
                self.vectors.append(column.name)
                continue
            start = self._first_free(column.name) if column.name in self.distinct else None
            make = self.values.maker(column, self.bounds[column.name], rows=rows, start=start)
            if make:
                self.makers[column.name] = make
            elif column.required and not column.default:
                raise UsageError(
                    f"{self.table.quoted} can't be filled",
                    why=f"column {column.name} has type {column.type}, and must have a value",
                    fix="fill it with a fixture: inv data.seed FILE",
                )

    def _share_parents(self, key: ForeignKey, rows: int) -> None:
        """Have the columns of a foreign key take the keys of its parent's rows."""
        if any(name in self.makers for name in key.columns):
            return
        parent, listed = self.names.get(key.parent), ", ".join(f"p.{identifier(k)}::text" for k in key.keys)
        order = ", ".join(f"p.{identifier(k)}" for k in key.keys)
        alone = any(set(names) <= set(key.columns) for names in self.table.unique_sets())
        free = ""
        if alone:  # one child each
            pairs = zip(key.columns, key.keys, strict=True)
            same = " AND ".join(f"c.{identifier(a)} = p.{identifier(b)}" for a, b in pairs)
            free = f" WHERE NOT EXISTS (SELECT FROM {self.table.quoted} c WHERE {same})"
        limit = rows if alone else PARENTS
        found: list[tuple[str, ...]] = []
        if parent:
            self.cursor.execute(f"SELECT {listed} FROM {parent} p{free} ORDER BY {order} LIMIT {limit}")
            found = [tuple(NULL if v is None else v.translate(ESCAPES) for v in row) for row in self.cursor.fetchall()]
        if alone and len(found) < rows and found:
            raise self._too_many(rows, f"{parent} has {len(found):,} rows without one")
        if not found:
            if _needs(self.table, key):
                raise UsageError(
                    f"{self.table.quoted} can't be filled",
                    why=f"its foreign key needs rows of {parent or 'a table that is not the user’s'}, which has none",
                    fix=f"fill that one first: inv data.generate --rows 100 --table {typed(parent)}; or take --all"
                    if parent
                    else "take --all",
                )
            self.makers.update(dict.fromkeys(key.columns, lambda _: NULL))
            return
        chance, last = self.values.chance.random, [-1, 0]

        def row_of(i: int) -> tuple[str, ...]:
            if last[0] != i:  # all columns of a key come from one row
                last[:] = [i, i if alone else int(chance() * len(found))]
            return found[last[1]]

        for place, name in enumerate(key.columns):
            self.makers[name] = lambda i, place=place: row_of(i)[place]  # type: ignore[misc]
        self.parents = {**self.parents, key.columns[0]: found}
        if alone:
            self.distinct.update(key.columns)

    def _keep_apart(self, names: list[str], rows: int) -> None:
        """Have columns that must differ together do so, by one that differs alone if there is one."""
        if self.distinct & set(names):
            return
        free = [n for n in names if n not in self.makers and not self.bounds[n].choices]
        ranked = sorted(
            (DISTINCT.index(c.type), c.name)
            for c in map(self.table.column, free)
            if c.type in DISTINCT and not c.array and not c.labels
        )
        if ranked:
            self.distinct.add(ranked[0][1])
            return
        lists = [self._possible(name) for name in names]
        if not all(lists):
            return  # the server will say
        listed = ", ".join(f"{identifier(name)}::text" for name in names)
        self.cursor.execute(f"SELECT {listed} FROM {self.table.quoted}")
        taken = {tuple(NULL if v is None else v.translate(ESCAPES) for v in row) for row in self.cursor.fetchall()}
        room = math.prod(map(len, lists)) - len(taken)
        if rows > room:
            raise self._too_many(rows, f"{', '.join(names)} can have {room:,} more different values together")
        others = (values for values in _combinations(lists) if values not in taken)
        last: list[Any] = [-1, ()]

        def row_of(i: int) -> tuple[str, ...]:
            if last[0] != i:
                last[:] = [i, next(others)]
            values: tuple[str, ...] = last[1]
            return values

        for place, name in enumerate(names):
            self.makers[name] = lambda i, place=place: row_of(i)[place]  # type: ignore[misc]

    def _possible(self, name: str) -> list[str]:
        column = self.table.column(name)
        if column.type == "bool":
            return ["f", "t"]
        if name in self.parents:
            return [row[0] for row in self.parents[name]]
        return [value.translate(ESCAPES) for value in column.labels or self.bounds[name].choices]

    def _too_many(self, rows: int, why: str) -> UsageError:
        return UsageError(f"{self.table.quoted} can't take {rows:,} more rows", why=why, fix="ask for fewer: --rows")

    def _first_free(self, name: str) -> int:
        """The number from which on a column's values are not there yet."""
        column = self.table.column(name)
        if column.type == "uuid":
            return 0
        if column.type in TEXTS:
            self.cursor.execute(f"SELECT count(*) FROM {self.table.quoted}")
        elif column.type in ("date", "timestamp", "timestamptz"):
            unit = 86_400 if column.type == "date" else 1
            newest = f"extract(epoch FROM max({identifier(name)}) - '2024-01-01'::timestamp)"
            if column.type == "date":
                newest = f"(max({identifier(name)}) - '2024-01-01'::date) * {unit}"
            elif column.type == "timestamptz":
                newest = f"extract(epoch FROM max({identifier(name)}) - '2024-01-01 00:00+00'::timestamptz)"
            query = f"SELECT greatest(0, coalesce(floor({newest} / {unit}) + 1, 0))::bigint FROM {self.table.quoted}"
            self.cursor.execute(query)
        else:
            query = f"SELECT coalesce(floor(max({identifier(name)})) + 1, 1)::bigint FROM {self.table.quoted}"
            self.cursor.execute(query)
        first: int = self.cursor.fetchone()[0]
        return first

    # writing

    def _write(self, rows: int) -> None:
        names = list(self.makers)
        listed = ", ".join(map(identifier, names))
        copy, then = f"COPY {self.table.quoted} ({listed}) FROM STDIN", ""
        if self.vectors:
            copy, then = self._stage(names)
        elif not names:
            raise UsageError(f"{self.table.quoted} can't be filled", why="the server makes all of its columns")
        with (
            ThreadPoolExecutor(1) as beside,
            console.progress_bar(self.table.name, rows, unit=" rows", unit_scale=True) as show,
        ):
            pending: tuple[Future[Any], int] | None = None
            for count, chunk in self._chunks(rows, names):
                if pending:
                    self._wait(pending[0])
                    show(pending[1])
                pending = beside.submit(self._send, copy, then, chunk), count
            assert pending
            self._wait(pending[0])

    def _chunks(self, rows: int, names: list[str]) -> Iterator[tuple[int, bytes]]:
        makers = [self.makers[name] for name in names]
        chance = self.values.chance.randrange
        for first in range(0, rows, CHUNK):
            count = min(CHUNK, rows - first)
            lines = []
            for i in range(first, first + count):
                cells = [make(i) for make in makers]
                for _ in self.vectors:
                    cells.extend(map(str, self.values.parts if self.prose else (chance(3 * COUNT) for _ in range(3))))
                lines.append("\t".join(cells))
            yield count, ("\n".join(lines) + "\n").encode()

    def _send(self, copy: str, then: str, chunk: bytes) -> None:
        self.cursor.copy_expert(copy, io.BytesIO(chunk))
        if then:
            self.cursor.execute(then)

    def _stage(self, names: list[str]) -> tuple[str, str]:
        """A table for rows whose vectors are numbers of parts, and the statement that adds those up: in text, a vector
        would be most of what is sent. https://github.com/pgvector/pgvector#vector-functions"""
        texts = self.values.words.fragments
        quoted, taken, joins, parts = [identifier(n) for n in names], [f"r.{identifier(n)}" for n in names], "", []
        for number, name in enumerate(self.vectors):
            size = self.table.column(name).modifier
            vectors = embedding.embed(self.stack, texts, size) if self.prose else embedding.noise(len(texts), size)
            pool = f"nv_parts_{number}"
            self.cursor.execute(
                f"DROP TABLE IF EXISTS {pool};"
                f" CREATE TEMP TABLE {pool} (id int PRIMARY KEY, v vector({size})) ON COMMIT DROP"
            )
            lines = "".join(f"{i}\t[{','.join(f'{x:.7g}' for x in v)}]\n" for i, v in enumerate(vectors))
            self.cursor.copy_expert(f"COPY {pool} FROM STDIN", io.BytesIO(lines.encode()))
            self.cursor.execute(f"ANALYZE {pool}")
            for part in "abc":
                joins += f" JOIN {pool} {part}{number} ON {part}{number}.id = r.nv_{part}{number}"
                parts.append(f"nv_{part}{number}")
            quoted.append(identifier(name))
            taken.append(f"l2_normalize(a{number}.v + b{number}.v + c{number}.v)")
        extra = ", ".join(f"0 AS {part}" for part in parts)
        columns_ = "".join(f"{identifier(n)}, " for n in names)
        self.cursor.execute(
            "DROP TABLE IF EXISTS nv_rows; CREATE TEMP TABLE nv_rows ON COMMIT DROP AS"
            f" SELECT {columns_}{extra} FROM {self.table.quoted} WITH NO DATA"
        )
        insert = (
            f"INSERT INTO {self.table.quoted} ({', '.join(quoted)}) SELECT {', '.join(taken)} FROM nv_rows r{joins};"
            " TRUNCATE nv_rows"
        )
        return f"COPY nv_rows ({columns_}{', '.join(parts)}) FROM STDIN", insert

    def _take_indexes(self, rows: int) -> list[str]:
        """Take the table's indexes away until its rows are written; how to make them again. None where the rows that
        are there already would make that the longer way."""
        self.cursor.execute(f"SELECT reltuples FROM pg_class WHERE oid = {self.table.oid}")
        if rows < REBUILD or rows * 3 < self.cursor.fetchone()[0]:
            return []
        self.cursor.execute(
            # what its definition does not say would be lost: a partitioned table's covers its partitions', another one
            # may have a tablespace; who does not own it can't drop it
            "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i"
            " JOIN pg_class c ON c.oid = i.indexrelid"
            f" WHERE i.indrelid = {self.table.oid} AND c.relkind = 'i' AND c.reltablespace = 0"
            " AND pg_has_role(c.relowner, 'USAGE') AND NOT (i.indisunique OR i.indisclustered OR i.indisreplident)"
            " AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)"
            " AND obj_description(i.indexrelid, 'pg_class') IS NULL ORDER BY 1"
        )
        found = self.cursor.fetchall()
        for name, _ in found:
            self.cursor.execute(f"DROP INDEX {name}")
        return [definition for _, definition in found]

    def _wait(self, done: Future[Any]) -> None:
        """Wait so that an interruption is heard at once, also by the server."""
        try:
            while not done.done():
                futures.wait([done], 0.2)
        except BaseException:
            self.connection.cancel()
            raise
        done.result()


def _combinations(lists: list[list[str]]) -> Iterator[tuple[str, ...]]:
    """Every combination once, all lists in use from the beginning."""
    for number in range(math.prod(map(len, lists))):
        values, rest, shift = [], number, 0
        for listed in lists:
            place = (rest + shift) % len(listed)
            rest //= len(listed)
            shift += place
            values.append(listed[place])
        yield tuple(values)


def _refused(table: Table, error: Any) -> StackError:
    diag = error.diag
    detail = (diag.message_detail or "").strip()
    name = diag.constraint_name
    fix = "fill it with a fixture: inv data.seed FILE"
    if error.pgcode == "23505":
        fix = "rows of this seed are there already: take another --seed, or none for any"
    elif name and error.pgcode == "23514":
        fix = f"{name} asks for more than a range, a list or a length; {fix}"
    elif error.pgcode == "42501":
        fix = "the application's role may not write to it: GRANT it, with inv db.shell --admin"
    return StackError(
        f"no row was generated: the server refused one of {table.quoted}",
        why=f"constraint {name}: {diag.message_primary}" if name else str(diag.message_primary or error).strip(),
        evidence=[detail[:300]] if detail else [],
        fix=fix,
    )
