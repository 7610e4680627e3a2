"""Filling a new database from a dump, beside the one in use."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from devstack import console
from devstack.data import catalogue, census, journal, lanes, privileged
from devstack.data.archives import Contents, archive, list_file, listed, settled
from devstack.data.catalogue import Backup
from devstack.data.journal import Journal
from devstack.data.manifest import Kind, Layout, Manifest, now, stamp
from devstack.data.ownership import owned
from devstack.data.reading import Wrong, sql_chunks
from devstack.data.session import Role, Session, session
from devstack.data.sqltext import restricted
from devstack.data.streams import Digested, chunks, directory_hash, meter, sha256_of
from devstack.errors import StackError
from devstack.files import open_plain
from devstack.services.postgres import PINNED, identifier, literal, staged
from devstack.shell import Command, argv

if TYPE_CHECKING:
    from devstack.stack import Stack

OPTIONS_OF_LOADS = (
    "-c maintenance_work_mem=256MB -c synchronous_commit=off"
    " -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
)
"""An HNSW index that fits into this memory is built in two thirds of the time. Nobody waits for the disk: the switch to
the new database does, for all that was written before it. What the role's own settings say is for the application."""

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

AVAILABLE = """
SELECT name, requires FROM pg_available_extension_versions JOIN pg_available_extensions USING (name)
 WHERE version = default_version
"""
"""Extensions that the server has, each with those that it builds on."""

EXTENSIONS = "SELECT extname AS name, nspname AS schema FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"

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
    """A dump to restore. Whoever made it, it is loaded as the database's owner."""

    path: Path
    layout: Layout
    kind: Kind = "full"
    manifest: Manifest | None = None
    extensions: tuple[tuple[str, str], ...] = ()
    """Extensions that it wants, each with its schema."""
    signed: bool = False
    """Whether this environment has made it: its roles are those of this server."""
    as_superuser: bool = False
    """Whether to load it as the superuser, with everything as it was. The dump's functions, checks and triggers run as
    that then."""
    trust_cluster: bool = False
    """Whether somebody said that a cluster's copy is trusted, whoever has signed it."""

    @staticmethod
    def of(stack: Stack, backup: Backup) -> Source:
        m = backup.manifest
        extensions = tuple((name, m.extension_schemas.get(name, "public")) for name in m.extensions)
        return Source(backup.path, m.layout, m.kind, m, extensions, catalogue.is_signed(stack, backup))

    def for_superuser(self) -> Source:
        """Return the same, to be loaded as the superuser.

        :raises StackError: this environment has not made it, or not of its own database.
        """
        if not self.signed or self.origin or self.layout == "cluster":
            raise StackError(
                f"{self.name} can't be restored with --as-superuser",
                why="that is for dumps which this environment has made of its own database, and signed",
                fix="leave --as-superuser out: it is loaded as the database's owner",
            )
        return msgspec.structs.replace(self, as_superuser=True)

    @property
    def role(self) -> Role:
        return "superuser" if self.as_superuser else "owner"

    @property
    def origin(self) -> str:
        """The database elsewhere that it is of; empty for this environment's own."""
        return self.manifest.origin if self.manifest else ""

    @property
    def name(self) -> str:
        """Name of the dump, also where this is a copy."""
        return self.manifest.file if self.manifest else self.path.name


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
    stack.db.check_restricts()
    left: list[str] = []
    if not source.as_superuser:
        in_use = extensions_in_use(stack) if source.kind == "data" else {}
        create_extensions(stack, {**dict(source.extensions), **in_use}, name)
    try:
        with contextlib.ExitStack() as held:
            if source.as_superuser:
                source = held.enter_context(_proven(stack, source))
            held.enter_context(stack.db.loading(name))
            _fill(stack, source, name, left)
    except Wrong as wrong:
        raise StackError(f"{source.name} is damaged", why=str(wrong), evidence=wrong.evidence) from None
    except StackError as error:
        raise _explained(stack, source, error) from None
    if left:
        console.note(f"left out, as only a superuser may create it: {privileged.shown(left)}")
    if source.as_superuser:
        with session(stack.db, name, "complete the restored database") as sql:
            for extension in stack.settings.db.extensions:
                sql.create_extension(extension)
    if analyze:
        with analyzed(stack, name):
            pass


@contextlib.contextmanager
def _proven(stack: Stack, source: Source) -> Iterator[Source]:
    """Yield a copy of a dump that nobody else can change, proven to be what its signed manifest says before a byte of
    it is obeyed.

    :raises Wrong: it is something else.
    """
    manifest = source.manifest
    assert manifest  # without one it is not for the superuser
    with staged(stack.context, source.path) as copy:
        if source.layout == "directory":
            files = {path.name: sha256_of(path) for path in copy.iterdir()}
            same = files == manifest.files and directory_hash(files) == manifest.sha256
        else:
            same = sha256_of(copy) == manifest.sha256
        if not same:
            raise Wrong("it changed since it was checked")
        yield msgspec.structs.replace(source, path=copy)


def _fill(stack: Stack, source: Source, name: str, left: list[str]) -> None:
    if source.kind == "data":
        copy_database(stack, name, as_superuser=source.as_superuser, section="pre-data")
    # pg_restore of 17 and later has a setting that an older server, which only an external one is, does not know
    if source.layout == "sql" or stack.db.origin:
        _load_script(stack, source, name, left)
    else:
        _load_archive(stack, source, name, left)
    if source.kind == "data":
        copy_database(stack, name, as_superuser=source.as_superuser, section="post-data")


def _explained(stack: Stack, source: Source, error: StackError) -> StackError:
    """Return the error with a way on, if the database's owner may not do what the dump wants."""
    refused = ("permission denied", "must be owner", "must be superuser", "superuser can", "able to SET ROLE")
    if source.as_superuser or not any(word in line for line in error.evidence for word in refused):
        return error
    return StackError(
        error.what,
        why=f"a dump is loaded as the database's owner, {stack.settings.db.user}, who may not do this",
        evidence=error.evidence,
        fix="as it was, its functions and checks then run as the superuser:"
        f" inv data.restore --file {argv([source.name])} --as-superuser"
        if source.signed and not source.origin
        else "take it out of the dump",
    )


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


def _load_script(stack: Stack, source: Source, name: str, left: list[str]) -> None:
    """Load the SQL of a dump. Several sessions take the rows of one that has a manifest, which is pg_dump's."""
    with _script(stack, source) as script:
        content = restricted(script)
        if not source.as_superuser:
            content = _owned(stack, source, content, left)
        with (
            lanes.shared(stack, name, content, role=source.role)
            if source.manifest
            else contextlib.nullcontext(content) as sql
        ):
            command = _program(stack, PSQL, name, as_superuser=source.as_superuser)
            stack.context.stream_in(command, sql, f"restore {source.name}")


def _owned(stack: Stack, source: Source, content: Iterable[bytes], left: list[str]) -> Iterator[bytes]:
    """Yield SQL as the database's owner can load it. Another environment's roles are not known here, or others."""
    granted = source.signed and not source.origin and not stack.db.origin
    major = stack.db.server_major
    return owned(content, stack.settings.db.user, major=major, privileges=granted, left=left)


@contextlib.contextmanager
def _script(stack: Stack, source: Source) -> Iterator[Iterator[bytes]]:
    """The SQL of a dump, whatever its layout.

    :raises Wrong: at the end, when it is not what it was.
    """
    if source.layout == "sql":
        with _digested(source) as digested:
            yield sql_chunks(digested)
        return
    with archive(stack, source.path, ["-f", "-"], f"read {source.name}") as out:
        yield chunks(out)


@contextlib.contextmanager
def _digested(source: Source) -> Iterator[Digested]:
    """The bytes of a file.

    :raises Wrong: at the end, when they are not what they were.
    """
    try:
        opened = os.fdopen(open_plain(source.path), "rb")
    except OSError as error:
        raise Wrong(f"it can't be read any more: {error.strerror or error}") from None
    with opened as file, meter(f"restoring {source.name}", os.fstat(file.fileno()).st_size) as progress:
        digested = Digested(file, progress)
        yield digested
        digested.rest()
    if source.manifest and digested.sha256 != source.manifest.sha256:
        raise Wrong("it changed while it was read")


def _load_archive(stack: Stack, source: Source, name: str, left: list[str]) -> None:
    """Load an archive by pg_restore, the owner's as far as the list of its contents says; what depends on whose
    an object is goes through psql, which can go on where that is refused."""
    words = ["pg_restore", "-w", "--exit-on-error", "-d", name]
    what = f"restore {source.name}"
    with contextlib.ExitStack() as held:
        contents = Contents([], [], [])
        if not source.as_superuser:
            contents = listed(stack, source.path, {schema for _, schema in source.extensions})
            left += contents.left
            listing = held.enter_context(list_file(stack, contents.taken))
            words += ["--no-owner", "--no-privileges", "--enable-row-security", "-L", str(listing)]
        if source.layout == "directory":
            inside = held.enter_context(stack.db.inward(held.enter_context(settled(stack, source.path))))
            words += ["-Fd", "-j", str(min(4, os.cpu_count() or 1)), str(inside)]
            command = _program(stack, words, name, as_superuser=source.as_superuser)
            with stack.context.stream_out(command, what):
                pass
        else:
            digested = held.enter_context(_digested(source))
            command = _program(stack, words, name, as_superuser=source.as_superuser)
            stack.context.stream_in(command, chunks(digested), what)  # type: ignore[arg-type]
    if contents.attempted:
        with (
            list_file(stack, contents.attempted) as listing,
            archive(stack, source.path, ["-f", "-", "-L", str(listing)], f"read {source.name}") as out,
        ):
            content = _owned(stack, source, restricted(chunks(out)), left)
            stack.context.stream_in(_program(stack, PSQL, name, as_superuser=False), content, what)


def _program(stack: Stack, words: list[str], name: str, *, as_superuser: bool) -> Command:
    """Return a program that loads a dump; where we are root, under the services' account."""
    if as_superuser:
        command = stack.db.as_superuser(words, name, {"PGOPTIONS": f"{PINNED} {OPTIONS_OF_LOADS}"})
    else:
        command = stack.db.as_owner(words, name, {"PGOPTIONS": OPTIONS_OF_LOADS})
    return stack.db.apart(command)


def extensions_in_use(stack: Stack) -> dict[str, str]:
    """Return the schemas of the extensions in the database in use, by the extensions' names."""
    with session(stack.db, stack.settings.db.name, "read the extensions of the database in use") as sql:
        return {row["name"]: row["schema"] for row in sql.rows(EXTENSIONS)}


def create_extensions(stack: Stack, schemas: Mapping[str, str], name: str) -> None:
    """Create extensions in an empty database: those of ``schemas`` that the server has, and those of the settings. Only
    a superuser may, and as the database is empty, their scripts can't meet an object of a dump."""
    wanted = {**dict.fromkeys(stack.settings.db.extensions, "public"), **schemas}
    owner = identifier(stack.settings.db.user)
    with session(stack.db, name, "create the extensions of the restored database") as sql:
        needs = {row["name"]: row["requires"] or [] for row in sql.rows(AVAILABLE)}
        missing = [extension for extension in wanted if extension in needs]
        while missing:
            # those first that others build on
            extension = next((e for e in missing if not {*needs[e]} & {*missing}), missing[0])
            missing.remove(extension)
            if (schema := wanted[extension]) != "pg_catalog":
                sql.run(
                    "SET client_min_messages = warning;"
                    f" CREATE SCHEMA IF NOT EXISTS {identifier(schema)} AUTHORIZATION {owner}"
                )
            sql.create_extension(extension, schema)


def copy_database(stack: Stack, name: str, *, section: str = "", as_superuser: bool = False) -> None:
    """Copy the database in use into an empty one that has its extensions, or one section of it: ``pre-data`` is what
    rows need, ``post-data`` what would be in their way: keys, indexes, triggers, rules."""
    words = ["pg_dump", "-w", "--lock-wait-timeout=60000", *([f"--section={section}"] if section else [])]
    dump = stack.db.as_superuser(words, stack.settings.db.name)
    what = f"copy database {stack.settings.db.name}"
    with stack.context.stream_out(dump, what) as out:
        content = restricted(chunks(out))
        if not as_superuser:
            content = owned(content, stack.settings.db.user, major=stack.db.server_major, privileges=True, left=[])
        stack.context.stream_in(_program(stack, PSQL, name, as_superuser=as_superuser), content, what)


def count(stack: Stack, name: str) -> census.Census:
    with session(stack.db, name, "count the restored rows", role="reader") as sql:
        sql.run("BEGIN READ ONLY")
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
