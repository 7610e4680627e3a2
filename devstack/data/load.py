"""Filling a new database from a dump, beside the one in use."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack import console
from devstack.data import census, journal, lanes
from devstack.data.catalogue import Backup
from devstack.data.journal import Journal
from devstack.data.manifest import Kind, Layout, Manifest, now, stamp
from devstack.data.ownership import owned
from devstack.data.reading import Wrong, sql_chunks
from devstack.data.session import Session, session
from devstack.data.sqltext import Outline, restricted
from devstack.data.streams import Digested, chunks, meter
from devstack.errors import StackError
from devstack.services.postgres import SUPERUSER, identifier, literal
from devstack.shell import Command

if TYPE_CHECKING:
    from devstack.stack import Stack

OPTIONS_OF_LOADS = "-c maintenance_work_mem=256MB -c synchronous_commit=off"
"""An HNSW index that fits into this memory is built in two thirds of the time. Nobody waits for the disk: the switch to
the new database does, for all that was written before it."""

PSQL = ["psql", "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", "-"]

OPTIONS = """
SELECT concat_ws(' ', format('ENCODING %L LC_COLLATE %L LC_CTYPE %L', pg_encoding_to_char(encoding), datcollate,
           datctype),
       CASE to_jsonb(d) ->> 'datlocprovider'
           WHEN 'i' THEN format('LOCALE_PROVIDER icu ICU_LOCALE %L',
                                coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'))
           WHEN 'b' THEN format('LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', to_jsonb(d) ->> 'datlocale')
           WHEN 'c' THEN 'LOCALE_PROVIDER libc' END,
       format('OWNER %I', pg_get_userbyid(datdba))) AS options
  FROM pg_database d WHERE datname = {name}
"""
"""CREATE DATABASE's options of a database; the columns differ between PostgreSQL 14, 15 and 17."""

WITH_FIGURES = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""

WITHOUT_FIGURES = f"""
{WITH_FIGURES}
   AND (NOT EXISTS (SELECT FROM pg_statistic s WHERE s.starelid = c.oid)
        OR EXISTS (SELECT FROM pg_statistic_ext e WHERE e.stxrelid = c.oid))
"""
"""From PostgreSQL 18 on a dump has them, but not those of CREATE STATISTICS."""


class Source(Struct, frozen=True):
    """A dump to restore. Without a manifest it is somebody else's, and not trusted."""

    path: Path
    layout: Layout
    kind: Kind = "full"
    manifest: Manifest | None = None
    outline: Outline | None = None
    extensions: tuple[tuple[str, str], ...] = ()
    """Of an untrusted dump, and of one from elsewhere: the extensions that it wants, each with its schema."""

    @staticmethod
    def of(backup: Backup) -> Source:
        m = backup.manifest
        return Source(backup.path, m.layout, m.kind, m, extensions=tuple(m.extension_schemas.items()))

    @property
    def origin(self) -> str:
        """The database elsewhere that it is of; empty for this environment's own."""
        return self.manifest.origin if self.manifest else ""

    @property
    def name(self) -> str:
        return self.path.name


class Mismatch(Exception):
    """A database holds something else than it should."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def derived(database: str, suffix: str) -> str:
    """A name beside a database's, in the 63 bytes that PostgreSQL takes."""
    room = 63 - len(suffix.encode()) - 1
    return f"{database.encode()[:room].decode(errors='ignore')}_{suffix}"


def begin(stack: Stack, operation: str, about: str) -> Journal:
    """Create an empty database like the one in use, noted in the journal before it is there."""
    made = named(stack, operation, about)
    journal.write(stack, made)
    try:
        create(stack, made.incoming)
    except BaseException:
        abandon(stack, made)
        raise
    return made


def named(stack: Stack, operation: str, about: str) -> Journal:
    """A name for a new database, and what it is for."""
    database = stack.settings.db.name
    return Journal(
        operation=operation,  # type: ignore[arg-type]
        about=about,
        database=database,
        incoming=derived(database, f"{operation}_{secrets.token_hex(4)}"),
        began=stamp(now()),
        pid=os.getpid(),
    )


def create(stack: Stack, name: str, *, more: str = "") -> None:
    """Create an empty database like the one in use, with ``more`` options."""
    with session(stack.db, "postgres", "create a database to restore into") as sql:
        options = sql.value(OPTIONS.format(name=literal(stack.settings.db.name)))
        sql.run(f"CREATE DATABASE {identifier(name)} TEMPLATE template0 {options} {more}")


def drop(stack: Stack, name: str) -> None:
    """Remove a database, whoever is connected to it."""
    with session(stack.db, "postgres", f"drop database {name}") as sql:
        sql.run(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")


@contextlib.contextmanager
def scratch(stack: Stack, operation: str, about: str) -> Iterator[str]:
    """A database for the time being."""
    made = begin(stack, operation, about)
    try:
        yield made.incoming
    finally:
        abandon(stack, made)


def abandon(stack: Stack, made: Journal) -> None:
    """Remove the database that was being filled. Where the server can't, the next command does it: the journal stays,
    and why this one failed is not hidden."""
    try:
        drop(stack, made.incoming)
    except StackError:
        console.note(f"database {made.incoming} could not be removed now; the next command on the data does it")
        return
    journal.clear(stack)


def load(stack: Stack, source: Source, name: str, *, analyze: bool = True) -> None:
    """Fill an empty database; with ``analyze`` off, :func:`analyzed` is to follow.

    :raises StackError: PostgreSQL refused something; the database is to be dropped then.
    """
    if source.kind == "data":
        _copy_schema(stack, name)
    elif source.manifest is None or source.origin:
        _create_extensions(stack, source, name)
    try:
        if source.origin or stack.db.origin:
            _load_moved(stack, source, name)
        elif source.layout == "directory":
            _load_directory(stack, source, name)
        else:
            _load_file(stack, source, name)
    except Wrong as wrong:
        raise StackError(f"{source.name} is damaged", why=str(wrong), evidence=wrong.evidence) from None
    with session(stack.db, name, "complete the restored database") as sql:
        for extension in stack.settings.db.extensions:
            sql.create_extension(extension)
    if analyze:
        with analyzed(stack, name):
            pass


def _analyze(sql: Session, names: list[str]) -> None:
    sql.run(f"SET client_min_messages = error; ANALYZE {', '.join(names)}")


@contextlib.contextmanager
def analyzed(stack: Stack, name: str) -> Iterator[None]:
    """Have the planner's statistics made while something else reads the database: of the tables that the dump had none
    of; on an external server, where the role may not look at them, of all.

    :raises StackError: at the end, when they could not be.
    """
    what = "analyze the restored database"
    with session(stack.db, name, what) as sql:
        names = [row["name"] for row in sql.rows(WITH_FIGURES if stack.db.origin else WITHOUT_FIGURES)]
    if not names:
        yield
        return
    # as the owner: what an index or a statistic is made of is the application's code
    with session(stack.db, name, what, role="owner") as sql, ThreadPoolExecutor(1) as beside:
        done = beside.submit(_analyze, sql, names)
        yield
        done.result()


def _load_file(stack: Stack, source: Source, name: str) -> None:
    manifest = source.manifest
    with (
        source.path.open("rb") as file,
        meter(f"restoring {source.name}", source.path.stat().st_size) as progress,
    ):
        digested = Digested(file, progress)
        if source.layout == "custom":
            words = ["pg_restore", "-w", "--exit-on-error", "-d", name]
            content: AbstractContextManager[Iterator[bytes]] = contextlib.nullcontext(chunks(digested))  # type: ignore[arg-type]
        else:
            words = PSQL
            content = _sql(stack, source, digested, name)
        with content as sql, _command(stack, source, words, name) as command:
            stack.context.stream_in(command, sql, f"restore {source.name}")
        digested.rest()
    if manifest and digested.sha256 != manifest.sha256:
        raise Wrong("it changed while it was read")


def _load_moved(stack: Stack, source: Source, name: str) -> None:
    """From one server to another: what is in the dump belongs to the database's owner there. Here it is restored as the
    application's role, since the superuser should not run what another server's users have made."""
    with _script(stack, source) as script:
        content = owned(script, stack.settings.db.user, major=stack.db.server_major)
        shared = lanes.shared(stack, name, content) if stack.db.origin else contextlib.nullcontext(content)
        with shared as sql:
            command = stack.db.as_owner(PSQL, name, {"PGOPTIONS": OPTIONS_OF_LOADS})
            stack.context.stream_in(command, sql, f"restore {source.name}")


@contextlib.contextmanager
def _script(stack: Stack, source: Source) -> Iterator[Iterator[bytes]]:
    """The SQL of a dump, whatever its layout.

    :raises Wrong: at the end, when it is not what it was.
    """
    if source.layout == "sql":
        size = source.path.stat().st_size
        with source.path.open("rb") as file, meter(f"restoring {source.name}", size) as progress:
            digested = Digested(file, progress)
            yield sql_chunks(digested)
            digested.rest()
        if source.manifest and digested.sha256 != source.manifest.sha256:
            raise Wrong("it changed while it was read")
        return
    with stack.db.inward(source.path) as inside:
        command = stack.db.as_superuser(["pg_restore", "-f", "-", str(inside)], "")
        with stack.context.stream_out(command, f"read {source.name}") as out:
            yield chunks(out)


def _sql(stack: Stack, source: Source, digested: Digested, name: str) -> AbstractContextManager[Iterator[bytes]]:
    """The SQL for psql; a dump that is trusted has others help with its rows."""
    content = sql_chunks(digested)
    if not source.manifest:
        assert source.outline
        own = secrets.token_hex(16).encode()
        return contextlib.nullcontext(restricted(content, source.outline.restrict_token, own))
    # triggers and foreign keys have had their say when rows without a schema were written first
    first = "SET session_replication_role = replica;\n" if source.kind == "data" else ""
    return lanes.shared(stack, name, itertools.chain([first.encode()], content), first=first)


def _load_directory(stack: Stack, source: Source, name: str) -> None:
    words = ["pg_restore", "-w", "-Fd", "--exit-on-error", "-j", str(min(4, os.cpu_count() or 1)), "-d", name]
    with (
        stack.db.inward(source.path) as inside,
        _command(stack, source, [*words, str(inside)], name) as command,
        stack.context.stream_out(command, f"restore {source.name}"),
    ):
        pass


@contextlib.contextmanager
def _command(stack: Stack, source: Source, words: list[str], name: str) -> Iterator[Command]:
    """As the superuser, who can make everything as it was; somebody else's dump as the application's role."""
    if source.manifest:
        if source.kind == "data" and words[0] == "pg_restore":
            words = [*words, "--disable-triggers", "--superuser", SUPERUSER]
        yield stack.db.as_superuser(words, name, {"PGOPTIONS": OPTIONS_OF_LOADS})
    elif words[0] == "pg_restore":
        with stack.db.inward(stack.paths.config / "restore-list") as listing:
            words = [*words, "--no-owner", "--no-privileges", "-L", str(listing)]
            yield stack.db.as_owner(words, name, {"PGOPTIONS": OPTIONS_OF_LOADS})
    else:
        yield stack.db.as_owner(words, name, {"PGOPTIONS": OPTIONS_OF_LOADS})


def _create_extensions(stack: Stack, source: Source, name: str) -> None:
    """Those of the settings, which only the superuser can create, where the dump wants them."""
    wanted = dict(source.extensions)
    with session(stack.db, name, "create the extensions of the restored database") as sql:
        for extension in stack.settings.db.extensions:
            schema = wanted.get(extension, "public")
            owner = identifier(stack.settings.db.user)
            sql.run(
                "SET client_min_messages = warning;"
                f" CREATE SCHEMA IF NOT EXISTS {identifier(schema)} AUTHORIZATION {owner}"
            )
            sql.create_extension(extension, schema)


def _copy_schema(stack: Stack, name: str) -> None:
    """The tables of the database in use, for a backup that has data alone."""
    dump = stack.db.as_superuser(["pg_dump", "-w", "-s", "--lock-wait-timeout=60000"], stack.settings.db.name)
    load_it = [*PSQL, "-1"]
    with stack.context.stream_out(dump, "read the database's schema") as schema:
        stack.context.stream_in(stack.db.as_superuser(load_it, name), chunks(schema), "copy the database's schema")


def count(stack: Stack, name: str) -> census.Census:
    with session(stack.db, name, "count the restored rows", role="reader") as sql:
        return census.take(sql)


def check_counts(stack: Stack, manifest: Manifest, name: str) -> census.Census:
    """Compare a restored database with the manifest.

    :raises Mismatch: it differs.
    """
    expected = census.Census(
        tables=manifest.tables,
        sequences=manifest.sequences,
        extensions=manifest.extensions,
        large_objects=manifest.large_objects,
    )
    counted = count(stack, name)
    if lines := expected.differences(counted, data=manifest.kind != "schema"):
        raise Mismatch(lines)
    return counted


def sessions_on(sql: Session, names: list[str]) -> int:
    """Clients connected to these databases."""
    listed = ", ".join(map(literal, names))
    found: int = sql.value(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname IN ({listed}) AND pid <> pg_backend_pid()"
    )
    return found
