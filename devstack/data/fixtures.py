"""Fixtures: SQL and CSV files, each applied once, in a transaction of its own.

Which ones are applied stands in a table in the same database, in a schema of its own: it is written in the fixture's
own transaction, and a restore brings back what is true of the rows that it brings back.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from devstack import console
from devstack.data.manifest import now, stamp
from devstack.data.sqltext import converted, restricted
from devstack.data.streams import chunks
from devstack.errors import StackError, UsageError
from devstack.files import open_file
from devstack.services.postgres import identifier, literal
from devstack.shell import typed

if TYPE_CHECKING:
    from devstack.stack import Stack

LEDGER = "nv_devstack.seeds"
CREATE = """
CREATE SCHEMA IF NOT EXISTS nv_devstack;
COMMENT ON SCHEMA nv_devstack IS 'of the tool nv-devstack: which fixtures are applied';
CREATE TABLE IF NOT EXISTS nv_devstack.seeds (file text PRIMARY KEY, sha256 text NOT NULL, applied text NOT NULL)
"""
SUFFIXES = (".sql", ".csv")
NUMBER = re.compile(r"^\d+[-_.]")
"""What puts a file in its place and is no part of a table's name."""
MARK = "SELECT pg_catalog.set_config('nv.transaction', pg_catalog.txid_current()::text, true)"
STILL = """
DO $nv$ BEGIN
  IF coalesce(pg_catalog.current_setting('nv.transaction', true), '') <> pg_catalog.txid_current()::text THEN
    RAISE EXCEPTION 'the file ends the transaction that it is applied in';
  END IF;
END $nv$
"""


class Applied(Struct, frozen=True):
    """What became of a fixture. ``rows`` is None where that is not known: of SQL."""

    file: str
    did: Literal["applied", "applied again", "unchanged"]
    rows: int | None = None
    seconds: float = 0.0


class Fixture(Struct, frozen=True):
    """A file as it is now. ``name`` is its path, from the project's folder if it is in there."""

    path: Path
    name: str
    sha256: str

    @property
    def record(self) -> str:
        """The statement that notes it as applied."""
        values = ", ".join(map(literal, (self.name, self.sha256, stamp(now()))))
        return (
            f"INSERT INTO {LEDGER} (file, sha256, applied) VALUES ({values})"
            " ON CONFLICT (file) DO UPDATE SET sha256 = excluded.sha256, applied = excluded.applied"
        )


def apply(stack: Stack, path: str, *, again: bool) -> list[Applied]:
    """Apply a file, or a folder's in the order of their names; those that are applied already are left out.

    :raises UsageError: there is nothing to apply, or a file has changed since it was applied.
    :raises StackError: one failed: nothing of it is left, those before it stay.
    """
    found = _find(stack, path)
    if stack.context.dry:
        for fixture in found:
            console.out(f"# apply {fixture.path}")
        return []
    connection = stack.db.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '60s'; SET client_min_messages = warning")
            known = _known(cursor)
            _refuse_changed(found, known, path, again=again)
            if not known:
                cursor.execute(CREATE)
            return [_apply(stack, connection, fixture, known.get(fixture.name)) for fixture in found]
    finally:
        connection.close()


def _find(stack: Stack, path: str) -> list[Fixture]:
    if path.startswith("-"):
        raise UsageError(
            f"{path} is a flag, not a file",
            fix=["what there is: inv --help data.seed", f"a file of that name: inv data.seed {typed(f'./{path}')}"],
        )
    start = Path(os.path.abspath(Path(path).expanduser()))
    if start.is_dir():
        files = sorted(p for p in start.iterdir() if p.suffix in SUFFIXES and p.name[0] != "." and p.is_file())
        if not files:
            raise UsageError(f"there is no fixture in {start}", why="none of its files ends in .sql or .csv")
    elif not start.exists():
        raise UsageError(f"{start} does not exist", fix="name an .sql or .csv file, or a folder of them")
    elif start.suffix not in SUFFIXES:
        raise UsageError(f"{start.name} is no fixture", why="its name ends neither in .sql nor in .csv")
    else:
        files = [start]
    root = stack.settings.root
    try:
        return [Fixture(p, str(p.relative_to(root) if p.is_relative_to(root) else p), _sha256(stack, p)) for p in files]
    except OSError as error:
        raise UsageError(f"{error.filename} can't be read", why=error.strerror or str(error)) from None


def _sha256(stack: Stack, path: Path) -> str:
    with open_file(path, stack.context.host.friends) as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 18):
            digest.update(chunk)
    return digest.hexdigest()


def _known(cursor: Any) -> dict[str, tuple[str, str]]:
    """The files that are applied, with their hash and when."""
    cursor.execute("SELECT to_regclass(%s)", [LEDGER])
    if cursor.fetchone()[0] is None:
        return {}
    cursor.execute(f"SELECT file, sha256, applied FROM {LEDGER}")
    return {file: (digest, when) for file, digest, when in cursor.fetchall()}


def _refuse_changed(found: list[Fixture], known: dict[str, tuple[str, str]], path: str, *, again: bool) -> None:
    changed = [f for f in found if f.name in known and known[f.name][0] != f.sha256]
    if changed and not again:
        raise UsageError(
            f"{changed[0].name} has changed since it was applied",
            why="its rows are in the database as they were then; nothing was applied now",
            evidence=[f"{f.name}, applied {known[f.name][1][:16].replace('T', ' ')} UTC" for f in changed],
            fix=[
                f"apply it once more, if its rows may be there already: inv data.seed {typed(path)} --again",
                "or put new rows into a new file",
            ],
        )


def _apply(stack: Stack, connection: Any, fixture: Fixture, before: tuple[str, str] | None) -> Applied:
    if before and before[0] == fixture.sha256:
        return Applied(fixture.name, "unchanged")
    began = time.monotonic()
    rows = None
    if fixture.path.suffix == ".csv":
        rows = _apply_csv(stack, connection, fixture)
    else:
        _apply_sql(stack, fixture)
    did: Literal["applied", "applied again"] = "applied again" if before else "applied"
    return Applied(fixture.name, did, rows, round(time.monotonic() - began, 3))


def _apply_sql(stack: Stack, fixture: Fixture) -> None:
    """Apply SQL through psql, which knows the COPY blocks of dumps, as the application's role. A fixture is data: none
    of psql's own commands is obeyed."""
    stack.db.check_restricts()
    words = ["psql", "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-1"]
    words += ["-c", MARK, "-f", "-", "-c", STILL, "-c", fixture.record]
    command = stack.db.apart(stack.db.as_owner(words, stack.settings.db.name))
    try:
        with open_file(fixture.path, stack.context.host.friends) as file:
            stack.context.stream_in(command, restricted(converted(chunks(file))), f"apply {fixture.name}")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{fixture.name} begins as UTF-16, and can't be read as that", why=error.reason, fix="write it in UTF-8"
        ) from None
    except StackError as error:
        # the first line that psql reads is ours
        lines = [
            re.sub(r"psql:<stdin>:(\d+):", lambda m: f"{fixture.path.name}:{int(m[1]) - 1}:", line)
            for line in error.evidence
        ]
        if "ends the transaction" in "\n".join(lines):
            raise StackError(
                f"{fixture.name} was not applied as one",
                why="it has a COMMIT or ROLLBACK of its own: what it committed stays, and is not noted as applied",
                fix="take BEGIN, COMMIT and ROLLBACK out of it: each file is a transaction",
            ) from None
        raise _failed(fixture, lines) from None


def _apply_csv(stack: Stack, connection: Any, fixture: Fixture) -> int:
    import psycopg2

    schema, _, table = NUMBER.sub("", fixture.path.stem).rpartition(".")
    target = f"{identifier(schema)}.{identifier(table)}" if schema else identifier(table)
    columns = _header(stack, fixture)
    listed = ", ".join(map(identifier, columns))
    with connection.cursor() as cursor:
        try:
            cursor.execute("BEGIN")
            with open_file(fixture.path, stack.context.host.friends) as file:
                if file.read(3) != b"\xef\xbb\xbf":  # the mark of Windows' programs is no part of a name
                    file.seek(0)
                cursor.copy_expert(f"COPY {target} ({listed}) FROM STDIN (FORMAT csv, HEADER, ENCODING 'UTF8')", file)
            rows: int = cursor.rowcount
            for name, sequence in _sequences(cursor, target, columns):
                cursor.execute(
                    f"SELECT setval({literal(sequence)}, greatest(max({identifier(name)}),"
                    f" (SELECT last_value FROM {sequence}))) FROM {target} HAVING max({identifier(name)}) IS NOT NULL"
                )
            cursor.execute(fixture.record)
            cursor.execute("COMMIT")
        except psycopg2.Error as error:
            cursor.execute("ROLLBACK")
            raise _failed(fixture, str(error).strip().splitlines()) from None
    return rows


def _sequences(cursor: Any, target: str, columns: list[str]) -> Iterator[tuple[str, str]]:
    """The columns that were given values although a sequence fills them: it must go on after those."""
    for name in columns:
        cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", [target, name])
        if sequence := cursor.fetchone()[0]:
            yield name, sequence


def _header(stack: Stack, fixture: Fixture) -> list[str]:
    try:
        with io.TextIOWrapper(open_file(fixture.path, stack.context.host.friends), "utf-8-sig", newline="") as file:
            columns = [name.strip() for name in next(csv.reader(file), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{fixture.name} can't be read as CSV", why=str(error), fix="write it in UTF-8") from None
    if not columns or not all(columns):
        raise UsageError(f"{fixture.name} has no header", why="its first line must name the columns")
    return columns


def _failed(fixture: Fixture, lines: list[str]) -> StackError:
    return StackError(
        f"{fixture.name} could not be applied",
        why="PostgreSQL refused it; nothing of this file is in the database, the files before it stay",
        evidence=lines[-10:],
        fix="mend the file; what was applied before is left out the next time",
    )
